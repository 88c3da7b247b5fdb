# portrait.awk - draws the example portrait as a PPM: awk -f examples/portrait.awk | convert it to PNG with any program.
# Every shape is an ellipse with an anti-aliased edge, painted back to front.

function clamp(v, lo, hi)
{
    return v < lo ? lo : v > hi ? hi : v
}

# Paints colour (r g b, 0..1) where (x, y) lies in the ellipse; `from` and `to` cut it to a band of rows.
function ellipse(cx, cy, rx, ry, cr, cg, cb, from, to,    dx, dy, d, g, c)
{
    if (y < from || y > to)
        return
    dx = (x - cx) / rx
    dy = (y - cy) / ry
    d = dx * dx + dy * dy
    if (d > 1.6)
        return
    # Distance to the edge in pixels, to first order.
    g = 2 * sqrt(dx * dx / (rx * rx) + dy * dy / (ry * ry))
    c = g > 0 ? clamp(0.5 - (d - 1) / g, 0, 1) : 1
    R += (cr - R) * c
    G += (cg - G) * c
    B += (cb - B) * c
}

BEGIN {
    W = 384
    H = 448
    printf "P3\n%d %d\n255\n", W, H
    for (j = 0; j < H; j++) {
        line = ""
        for (i = 0; i < W; i++) {
            x = i + 0.5
            y = j + 0.5
            # Wall: a soft gradient and two blurred lamps.
            R = 0.42 + 0.20 * y / H
            G = 0.56 + 0.12 * y / H
            B = 0.66 + 0.02 * y / H
            l = exp(-((x - 70) ^ 2 + (y - 90) ^ 2) / 5200)
            R += 0.36 * l; G += 0.24 * l; B += 0.05 * l

            ellipse(192, 196, 118, 150, 0.20, 0.12, 0.09, 0, 330)                # hair behind
            ellipse(192, 470, 178, 112, 0.16, 0.30, 0.46, 0, H)                  # shirt
            ellipse(192, 372, 44, 62, 0.74, 0.53, 0.42, 300, 420)                # neck
            ellipse(192, 398, 62, 34, 0.80, 0.59, 0.48, 380, H)                  # collar opening
            ellipse(104, 226, 17, 29, 0.80, 0.58, 0.47, 0, H)                    # ears
            ellipse(280, 226, 17, 29, 0.80, 0.58, 0.47, 0, H)
            ellipse(192, 222, 90, 118, 0.88, 0.67, 0.55, 0, H)                   # face
            ellipse(150, 262, 26, 20, 0.89, 0.645, 0.53, 0, H)                    # cheeks
            ellipse(234, 262, 26, 20, 0.89, 0.645, 0.53, 0, H)
            ellipse(192, 130, 104, 56, 0.24, 0.15, 0.11, 0, 150)                 # fringe
            ellipse(140, 140, 62, 26, 0.27, 0.17, 0.12, 0, H)
            ellipse(152, 211, 21, 12.5, 0.98, 0.98, 0.97, 0, H)                  # eyes
            ellipse(232, 211, 21, 12.5, 0.98, 0.98, 0.97, 0, H)
            ellipse(153, 211, 10, 10.5, 0.30, 0.42, 0.34, 0, H)
            ellipse(231, 211, 10, 10.5, 0.30, 0.42, 0.34, 0, H)
            ellipse(153, 211, 5, 5.4, 0.04, 0.04, 0.05, 0, H)
            ellipse(231, 211, 5, 5.4, 0.04, 0.04, 0.05, 0, H)
            ellipse(156, 207, 2.3, 2.3, 1, 1, 1, 0, H)
            ellipse(234, 207, 2.3, 2.3, 1, 1, 1, 0, H)
            ellipse(152, 202, 23, 5, 0.66, 0.45, 0.37, 0, 204)                   # lids
            ellipse(232, 202, 23, 5, 0.66, 0.45, 0.37, 0, 204)
            ellipse(150, 184, 26, 5.5, 0.22, 0.14, 0.10, 0, H)                   # brows
            ellipse(234, 184, 26, 5.5, 0.22, 0.14, 0.10, 0, H)
            ellipse(192, 246, 12, 26, 0.84, 0.61, 0.50, 0, H)                    # nose
            ellipse(192, 262, 17, 10, 0.82, 0.58, 0.47, 0, H)
            ellipse(192, 257, 15, 9, 0.88, 0.67, 0.55, 0, H)
            ellipse(192, 298, 34, 11, 0.72, 0.33, 0.33, 0, H)                    # mouth
            ellipse(192, 302, 30, 7, 0.79, 0.42, 0.40, 300, H)
            ellipse(192, 297, 33, 2, 0.36, 0.13, 0.14, 0, H)
            line = line int(255 * clamp(R, 0, 1) + 0.5) " " int(255 * clamp(G, 0, 1) + 0.5) " " int(255 * clamp(B, 0, 1) + 0.5) " "
        }
        print line
    }
}
