# rows.awk - a CSV table -> make rules on stdout, and below DIR what the rules' recipes read:
#   table          a line a row: id, then its text, audio, face and reference stage; or !id, line of the table, what is wrong
#   ID.cmd         the last two stages of a row, as functions of sh
#   STAGE-KEY.cmd  a stage that rows share. KEY is a digest of its command: rows that say the same share one
#   ID.row         how the row was when its ID.cmd was made: hv is asked for the commands of rows that are new or changed
# Files are rewritten only when they change: their times are what make goes by.
#
#   LC_ALL=C HV=hv HV_MODEL=... HVFLAGS=... awk -v out=OUT -v dir=OUT/.batch -f rows.awk FILE.csv
#
# Fields may be quoted ("..", "" inside) and hold commas and line breaks; a BOM and CRLF are taken off. A row with a fault is told,
# becomes a target that fails, and the others go on. A missing column, or no hv, ends it all with status 3.

function say(line, text)
{
    printf "%s:%d: %s\n", FILENAME, line, text > "/dev/stderr"
}

function fail(line, text)
{
    say(line, text)
    failed = 1
    exit 3
}

function sh(text)
{
    gsub(/'/, "'\\''", text)
    return "'" text "'"
}

# A path as a target or prerequisite.
function dep(path)
{
    gsub(/\$/, "$$", path)
    gsub(/[ #:%\\]/, "\\\\&", path)
    return path
}

function bad(line, id, text)
{
    say(line, text)
    table = table "!" id "\t" line "\t" dep2(text) "\n"
    printf "ROWS += bad-row-%d\nbad-row-%d:\n\t@$(run) bad %s %s\n", line, line, dep2(sh(id)), dep2(sh("line " line ": " text))
}

# Text in a recipe: one line, no variables.
function dep2(text)
{
    gsub(/[\r\n\t]/, " ", text)
    gsub(/\$/, "$$", text)
    return text
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

# Words of a text in the notation of sh: '..', ".." and \ quote, nothing is expanded; a line break outside of quotes ends a command.
# w[k, 1 ..] of command k, count[k]; returns the number of commands, -1 when a quote is open.
function words(text, w, count,    i, c, q, cur, any, k)
{
    k = 1
    count[1] = 0
    for (i = 1; i <= length(text) + 1; i++) {
        c = i <= length(text) ? substr(text, i, 1) : "\n"
        if (q != "") {
            if (i > length(text))
                return -1
            if (c == q)
                q = ""
            else if (q == "\"" && c == "\\" && index("\"\\", substr(text, i + 1, 1)))
                cur = cur substr(text, ++i, 1)
            else
                cur = cur c
        } else if (c == "'" || c == "\"") {
            q = c
            any = 1
        } else if (c == "\\") {
            cur = cur substr(text, ++i, 1)
            any = 1
        } else if (index(" \t\n", c)) {
            if (any)
                w[k, ++count[k]] = cur
            cur = ""
            any = 0
            if (c == "\n" && count[k])
                count[++k] = 0
        } else {
            cur = cur c
            any = 1
        }
    }
    return k - 1
}

# 44 bits of a text, in hexadecimal.
function digest(text,    i, h, p)
{
    if (!ready)
        for (i = 1; i < 256; i++)
            code[sprintf("%c", i)] = i
    ready = 1
    h = 7
    p = 17592186044399
    for (i = 1; i <= length(text); i++) {
        h = h * 257 + code[substr(text, i, 1)]
        h -= int(h / p) * p
    }
    return sprintf("%06x%06x", int(h / 4194304), h % 4194304)
}

function read_file(file,    all, line, any)
{
    while ((getline line < file) > 0) {
        all = all (any ? "\n" : "") line
        any = 1
    }
    close(file)
    return all
}

function write_file(file, text)
{
    if (read_file(file) == text)
        return
    print text > file
    close(file)
}

# A command without its -o FILE and its last `drop` words, as words for sh.
function command(k, drop,    i, s)
{
    for (i = 1; i <= count[k] - drop; i++) {
        if (w[k, i] == "-o" && w[k, i - 1] != "-p")
            i++
        else
            s = s (s == "" ? "" : " ") sh(w[k, i])
    }
    return s
}

function model()
{
    return ENVIRON["HV_MODEL"] == "" ? "" : "export HV_MODEL=" sh(ENVIRON["HV_MODEL"]) "; "
}

# A stage that rows share; input: its picture or sound. Returns its name. A digest that two commands have in common is told apart.
function shared(stage, k, input,    s, name)
{
    s = "input=" sh(input) "\nstage() { " model() "exec " command(k, 0) " \"$@\"; }"
    name = stage "-" digest(s)
    while ((name in what) && what[name] != s)
        name = name "x"
    if (!(name in what))
        write_file(dir "/" name ".cmd", s)
    what[name] = s
    return name
}

# Asks hv how it would make the row; 0, or 1 when hv refuses.
function ask(line, id, args, stages,    cmd, text, l, status, n)
{
    cmd = ENVIRON["HV"] " -n --keep " sh(dir) " " args " -o " sh(out "/" id ".mp4") " 2>&1; echo \"status $?\""
    while ((cmd | getline l) > 0)
        text = text l "\n"
    close(cmd)
    n = words(text, w, count)
    status = n > 0 && w[n, 1] == "status" ? w[n, 2] : 127
    if (status == 127)
        fail(line, "no program " ENVIRON["HV"])         # no fault of the row, and soon mended
    if (status != 0 || n != 7 || w[1, 1] != "hv-text" || w[5, 1] != "hv-denoise" || w[6, 1] != "hv-decode") {
        sub(/\n.*/, "", text)
        bad(line, id, "row '" id "': " text)
        return 1
    }
    stages["text"] = shared("text", 1, f[col["image"]])
    stages["audio"] = shared("audio", 2, f[col["audio"]])
    stages["face"] = shared("face", 3, f[col["image"]])
    stages["ref"] = shared("ref", 4, f[col["image"]])
    write_file(dir "/" id ".cmd", "input=" sh(f[col["audio"]]) "\nshared='" stages["text"] " " stages["audio"] " " stages["face"] " " stages["ref"] "'\n" \
               "denoise() { " model() "exec " command(5, 4) " \"$@\"; }\ndecode() { " model() "exec " command(6, 1) " \"$@\"; }")
    return 0
}

# Rules of a shared stage, and of a file that may be missing: then the recipe says so, for the log.
function shared_rule(name, input,    stage)
{
    stage = name
    sub(/-.*/, "", stage)
    if (!(name in ruled))
        printf "%s/%s.st: %s/%s.cmd %s $(model_%s)\n\t@$(run) shared %s\n", dep(dir), name, dep(dir), name, dep(input), stage, name
    ruled[name] = 1
    input_rule(input)
}

function input_rule(path)
{
    if (!(path in given))
        printf "%s:\n", dep(path)
    given[path] = 1
}

function row(line,    id, args, options, old, mark, i, n, s, stages, names)
{
    id = f[col["videoid"]]
    if (id !~ /^[A-Za-z0-9_][A-Za-z0-9._-]*$/ || length(id) > 200)
        return bad(line, id, "videoid '" id "': letters, digits, '.', '_' and '-' only")
    if (id in seen)
        return bad(line, id, "videoid '" id "' is there twice (line " seen[id] ")")
    seen[id] = line
    if (f[col["image"]] == "" || f[col["audio"]] == "")
        return bad(line, id, "row '" id "': no " (f[col["image"]] == "" ? "image" : "audio"))
    args = sh(f[col["image"]]) " " sh(f[col["audio"]]) " -p " sh(f[col["prompt"]])
    if (("fps" in col) && f[col["fps"]] != "" && f[col["fps"]] + 0 != 25)
        args = args " --audio.fps=" sh(f[col["fps"]])
    args = args " " ENVIRON["HVFLAGS"]
    if ("options" in col) {
        n = words(f[col["options"]], w, count)
        if (n < 0)
            return bad(line, id, "row '" id "': options: a quote is never closed")
        for (s = 1; s <= n; s++)
            for (i = 1; i <= count[s]; i++)
                args = args " " sh(w[s, i])
    }
    mark = ENVIRON["HV_MODEL"] "\n" args
    old = read_file(dir "/" id ".row")
    i = index(old, "\n")
    n = split(substr(old, 1, i - 1), names, " ")
    if (i && n == 4 && substr(old, i + 1) == mark && read_file(dir "/" id ".cmd") != "") {
        stages["text"] = names[1]
        stages["audio"] = names[2]
        stages["face"] = names[3]
        stages["ref"] = names[4]
    } else {
        if (ask(line, id, args, stages))
            return
        write_file(dir "/" id ".row", stages["text"] " " stages["audio"] " " stages["face"] " " stages["ref"] "\n" mark)
    }
    shared_rule(stages["text"], f[col["image"]])
    shared_rule(stages["audio"], f[col["audio"]])
    shared_rule(stages["face"], f[col["image"]])
    shared_rule(stages["ref"], f[col["image"]])
    table = table id "\t" stages["text"] "\t" stages["audio"] "\t" stages["face"] "\t" stages["ref"] "\n"
    s = dep(dir) "/"
    printf "ROWS += %s/%s.mp4\n%s/%s.mp4: %s%s.cmd %s%s.st %s%s.st %s%s.st %s%s.st %s $(model_row)\n\t@$(run) row %s\n", out, id, out, id, \
        s, id, s, stages["text"], s, stages["audio"], s, stages["face"], s, stages["ref"], dep(f[col["audio"]]), id
}

{
    sub(/\r$/, "")
    if (NR == 1)
        sub(/^\357\273\277/, "")
    if (pending == "")
        first = NR
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
                fail(NR, "no column '" need[i] "'")
        next
    }
    if (n != header)
        bad(first, f[1], n " fields, the header has " header)
    else
        row(first)
}

END {
    if (failed)
        exit 3
    if (!header)
        fail(NR, "no header")
    if (pending != "")
        bad(first, "", "a quote is never closed")
    gsub(/\$\$/, "$", table)
    write_file(dir "/table", substr(table, 1, length(table) - 1))
}
