# Reads what "nvcc -Xptxas -v" printed: one line a file, or with -v list=1 one a kernel: architecture, registers, bytes spilled, stack.
/Compiling entry function/ {
    split($0, part, "'")
    name = part[2]
    arch = part[4]
}
/bytes stack frame/ { stack = $1; spilled = $5 + $9 }
/Used [0-9]+ registers/ {
    for (i = 1; i <= NF; i++)
        if ($i == "Used")
            registers = $(i + 1)
    kernels++
    if (registers > most)
        most = registers
    total += spilled
    if (list)
        print arch, registers, spilled, stack, name
}
END {
    if (!list && kernels)
        printf "  PTXAS   %d kernels, at most %d registers, %d bytes spilled\n", kernels, most, total
}
