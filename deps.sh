#!/bin/sh
# deps.sh --check | --install: the libraries and programs that hv needs, and how to get the missing ones.
# Debian and Ubuntu: --install says what is missing, then runs apt-get (as root or through sudo). Elsewhere it lists them.
set -eu

mode=${1:---check}

# what it is for          a header or program to look for    Debian package
wanted='
header  cblas.h           libopenblas-dev
header  sndfile.h         libsndfile1-dev
header  soxr.h            libsoxr-dev
header  png.h             libpng-dev
header  jpeglib.h         libjpeg-dev
header  pcre2.h           libpcre2-dev
header  jansson.h         libjansson-dev
header  openssl/evp.h     libssl-dev
header  zlib.h            zlib1g-dev
header  cmocka.h          libcmocka-dev
program gcc               gcc
program ffmpeg            ffmpeg
program jq                jq
program prove             perl
'

have_header() {
    case $1 in
        cmocka.h) pre='#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>' ;;
        pcre2.h) pre='#define PCRE2_CODE_UNIT_WIDTH 8' ;;
        jpeglib.h) pre='#include <stdio.h>' ;;
        *) pre= ;;
    esac
    printf '%s\n#include <%s>\n' "$pre" "$1" | "${CC:-cc}" -E -x c - >/dev/null 2>&1
}

missing() {
    command -v "${CC:-cc}" >/dev/null 2>&1 || echo gcc libc6-dev
    echo "$wanted" | while read -r kind what package; do
        case $kind in
            header)  have_header "$what" || echo "$package" ;;
            program) command -v "$what" >/dev/null 2>&1 || echo "$package" ;;
        esac
    done
}

list=$(missing | tr ' ' '\n' | sort -u | tr '\n' ' ')
[ -n "$list" ] || exit 0

echo "missing packages: $list" >&2
if [ "$mode" != --install ]; then
    echo "install them, or let 'make deps' do it (Debian, Ubuntu)" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "this is not Debian or Ubuntu: install the packages that hold these headers and programs, then run make again:" >&2
    echo "$wanted" | awk 'NF { print "  " $1 "\t" $2 }' >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "not root and no sudo: run as root: apt-get install $list" >&2; exit 1; }
    as_root=sudo
fi
echo "installing them: ${as_root:+$as_root }apt-get install $list" >&2
$as_root apt-get update -qq
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $list >&2
left=$(missing | tr '\n' ' ')
[ -z "$left" ] || { echo "still missing: $left" >&2; exit 1; }
