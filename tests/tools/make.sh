#!/bin/sh
# The Makefile: install and uninstall with DESTDIR, help, compile_commands.json; manual pages and the README know every tool.
set -u
. tests/tap.sh
unset MAKEFLAGS MFLAGS MAKELEVEL

make -s BUILD="$BUILD" ${SAN:+SAN="$SAN"} install DESTDIR="$dir/root" PREFIX=/opt/hv >"$dir/log" 2>&1
ok $? "make install"
missing=
for tool in tools/*/; do
    tool=$(basename "$tool")
    [ -x "$dir/root/opt/hv/bin/$tool" ] || missing="$missing $tool"
    [ -s "$dir/root/opt/hv/share/man/man1/$tool.1" ] || missing="$missing $tool.1"
done
[ -z "$missing" ]
ok $? "every tool and its manual page are installed$missing"
"$dir/root/opt/hv/bin/hv" --version >/dev/null
ok $? "the installed hv finds its stages"
make -s BUILD="$BUILD" ${SAN:+SAN="$SAN"} uninstall DESTDIR="$dir/root" PREFIX=/opt/hv >"$dir/log" 2>&1
left=$(find "$dir/root" -type f)
[ -z "$left" ]
ok $? "make uninstall removes them all $left"

# Kernels for which GPUs? Commands are printed, none is run.
archs() {       # capabilities that nvidia-smi names, variables of make...
    caps=$1
    shift
    printf '#!/bin/sh\nprintf "%s"\n' "$caps" >"$dir/smi/nvidia-smi"
    PATH=$dir/smi:$PATH make -n CUDA=1 NVCC=/bin/true BUILD="$dir/none" "$@" "$dir/none/kernels/cuda/backend.cu.o" 2>/dev/null |
        grep -o 'arch=compute_[0-9a]*' | sed 's/.*_//' | awk '!seen[$0]++ { printf "%s ", $0 }'
}
mkdir "$dir/smi"
: >"$dir/smi/nvidia-smi"
chmod +x "$dir/smi/nvidia-smi"
every='80 86 89 90a 120 '
[ "$(archs '9.0\n' CI=)" = '90a ' ] && [ "$(archs '12.0\n8.6\n8.6\n' CI=)" = '120 86 ' ]
ok $? "kernels for the GPUs of this machine: $(archs '12.0\n8.6\n8.6\n' CI=)"
[ "$(archs 'no devices\n' CI=)$(archs '7.5\n' CI=)$(archs '9.0\n' CI=true)" = "$every$every$every" ]
ok $? "for all where there are none, and in CI: $(archs '' CI=)"
[ "$(archs '9.0\n' CI= ARCH='86;120')" = '86 120 ' ]
ok $? "or for those that are named"

make -s help | grep -q 'make demo'
ok $? "make help"
unknown=
for tool in tools/hv-*/; do
    tool=$(basename "$tool")
    # "  -o, --output FILE   text" -> "output|o"; the manual may name either.
    for opt in $("$BIN/$tool" --help | sed -nE 's/^  (-(.), |    )?--([a-z0-9-]+).*/\3|\2/p'); do
        long=${opt%|*} letter=${opt#*|}
        case $long in help | version) continue ;; esac
        sed 's/\\-/-/g' "tools/$tool/$tool.1" | grep -qE -- "(Fl -|, -|--)$long( |\$)|Fl ([a-z] , )*${letter:-$long}( |\$)" ||
            unknown="$unknown $tool:--$long"
    done
done
[ -z "$unknown" ]
ok $? "every option is in its manual page$unknown"
done_testing
