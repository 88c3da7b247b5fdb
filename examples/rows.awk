# rows.awk - a CSV table -> make rules on stdout, and OUT/.rows/ID.args: the arguments of hv for the row, quoted for sh.
# Fields may be quoted ("..", "" inside) and hold commas and line breaks. awk -v out=DIR -f rows.awk FILE.csv

function fail(text)
{
    printf "%s:%d: %s\n", FILENAME, NR, text > "/dev/stderr"
    failed = 1
    exit 3
}

function sh(text)
{
    gsub(/'/, "'\\''", text)
    return "'" text "'"
}

# A path as a prerequisite.
function dep(path)
{
    gsub(/\$/, "$$", path)
    gsub(/[ #:%\\]/, "\\\\&", path)
    return path
}

# Splits a whole record into f[1..]; returns the number of fields, 0 when a quote is still open.
function split_csv(text,    n, i, c, q, cur)
{
    n = 1
    cur = ""
    q = 0
    for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (q) {
            if (c != "\"")
                cur = cur c
            else if (substr(text, i + 1, 1) == "\"") {
                cur = cur "\""
                i++
            } else
                q = 0
        } else if (c == "\"")
            q = 1
        else if (c == ",") {
            f[n++] = cur
            cur = ""
        } else
            cur = cur c
    }
    f[n] = cur
    return q ? 0 : n
}

function row(    id, args, file, old, l)
{
    id = f[col["videoid"]]
    if (id !~ /^[A-Za-z0-9_][A-Za-z0-9._-]*$/)
        fail("videoid '" id "': letters, digits, '.', '_' and '-' only")
    if (id in seen)
        fail("videoid '" id "' is there twice (line " seen[id] ")")
    seen[id] = NR
    args = sh(f[col["image"]]) " " sh(f[col["audio"]]) " -p " sh(f[col["prompt"]])
    if (("fps" in col) && f[col["fps"]] != "" && f[col["fps"]] + 0 != 25)
        args = args " --audio.fps=" sh(f[col["fps"]])
    file = out "/.rows/" id ".args"
    old = ""
    while ((getline l < file) > 0)
        old = old (old == "" ? "" : "\n") l
    close(file)
    if (old != args) {
        print args > file
        close(file)
    }
    printf "VIDEOS += %s/%s.mp4\n%s/%s.mp4: %s %s %s\n", out, id, out, id, dep(f[col["image"]]), dep(f[col["audio"]]), file
    printf "\t@eval \"set -- $$(cat %s)\"; $(HV) \"$$@\" $(HVFLAGS) -o $@\n", file
}

{
    sub(/\r$/, "")
    if (NR == 1)
        sub(/^\357\273\277/, "")
    record = pending == "" ? $0 : record "\n" $0
    n = split_csv(record)
    pending = n ? "" : "open"
    if (!n || record == "")
        next
    if (!header) {
        header = n
        for (i = 1; i <= n; i++)
            col[f[i]] = i
        for (i = split("videoid image audio prompt", need, " "); i; i--)
            if (!(need[i] in col))
                fail("no column '" need[i] "'")
        next
    }
    if (n != header)
        fail(n " fields, the header has " header)
    row()
}

END {
    if (!failed && pending != "")
        fail("a quote is never closed")
}
