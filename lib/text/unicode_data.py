#!/usr/bin/env python3
"""Writes unicode_data.c from Python's unicodedata:   python3 lib/text/unicode_data.py > lib/text/unicode_data.c

The properties Cased and Case_Ignorable, which unicodedata does not offer, are read off str.lower(): a capital sigma becomes
final after a cased letter, with ignorable characters between."""
import sys
import unicodedata as ud

ALL = [c for c in range(0x110000)]
SURROGATES = range(0xD800, 0xE000)


def flags(c):
    s = chr(c)
    cat = ud.category(s)
    f = (1 if cat[0] == "C" else 0) | (2 if cat == "Zs" else 0)
    if c in SURROGATES:
        return f
    if (s + "\u03a3").lower()[-1] == "\u03c2":
        f |= 4
    elif ("A" + s + "\u03a3").lower()[-1] == "\u03c2":
        f |= 8
    return f


def runs(value):
    """(first code point, value) wherever the value changes."""
    last = 0
    for c in ALL:
        v = value(c)
        if v != last:
            yield c, v
            last = v


def lower_runs():
    """(first, last, stride, delta): code points first, first + stride, .., last go to themselves + delta."""
    out = []
    for c in ALL:
        low = chr(c).lower() if c not in SURROGATES else chr(c)
        if len(low) != 1 or ord(low) == c:
            continue
        d = ord(low) - c
        if out and out[-1][3] == d and c - out[-1][1] in (1, 2):
            f, l, s, _ = out[-1]
            if f == l or s == c - l:
                out[-1] = (f, c, c - l, d)
                continue
        out.append((c, c, 1, d))
    return out


def decompositions():
    for c in ALL:
        d = ud.decomposition(chr(c))
        if not d or d[0] == "<":
            continue
        parts = [int(x, 16) for x in d.split()]
        composes = len(parts) == 2 and ud.normalize("NFC", chr(c)) == chr(c)
        yield c | parts[0] << 21 | (parts[1] if len(parts) == 2 else 0) << 42 | int(composes) << 63


def table(ctype, name, cells, width):
    print("const %s %s[] = {" % (ctype, name))
    line = "   "
    n = 0
    for cell in cells:
        n += 1
        if len(line) + len(cell) + 2 > width:
            print(line)
            line = "   "
        line += " " + cell + ","
    print(line)
    print("};\nconst int %s_n = %d;\n" % (name, n))


print("/* Made by unicode_data.py from Unicode %s; not edited by hand. See unicode_data.h. */" % ud.unidata_version)
print('#include "text/unicode_data.h"\n')
table("uint32_t", "hv_uc_flags", ("0x%x" % (c << 4 | v) for c, v in runs(flags)), 120)
table("uint32_t", "hv_uc_ccc", ("0x%x" % (c << 8 | v) for c, v in runs(lambda c: ud.combining(chr(c)))), 120)
table("struct hv_uc_lower_run", "hv_uc_lower", ("{%d, %d, %d, %d}" % r for r in lower_runs()), 120)
table("uint64_t", "hv_uc_decomp", ("0x%xu" % v for v in decompositions()), 120)
sys.stdout.flush()
