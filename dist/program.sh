# What `dist/package` and `dist/image` have in common: the program, and the notices that have to go with it. To be sourced
# by them, in the top folder of the tree; $me is the name under which they speak.
# shellcheck shell=bash
# shellcheck source=tests/machine.sh
. tests/machine.sh

# Sorted and dated the same everywhere: what is made twice of one tree is the same, byte by byte.
export LC_ALL=C TZ=UTC
umask 022
# Seconds since 1970: files that are made get this time. That of the last commit, else of the change log.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH

version() {
    sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml
}

# Puts the program at $1, without what only a debugger needs: $BINARY, or else a release build.
install_program() {
    local binary=${BINARY-}
    if [[ -z $binary ]]; then
        need_packages "${BUILD_PACKAGES[@]}"
        need_rust
        say "building the program (BINARY=PATH takes one that is there)"
        cargo build --release --locked || die "the build failed; cargo's lines are above"
        binary=${CARGO_TARGET_DIR:-target}/release/vfio-user-tpm
    fi
    [[ -x $binary ]] || die "there is no program at $binary; BINARY=PATH names one that was built of this tree"
    install -D "$binary" "$1"
    strip --strip-all "$1"
    [[ $("$1" --version) == "vfio-user-tpm $(version)" ]] ||
        die "$binary is $("$1" --version), this tree is $(version): build it anew"
}

# Writes the notices of the Rust packages that are part of the program to $1. The text of the Apache licence is
# LICENSE-APACHE, and is not repeated for each of them.
write_notices() {
    local name version licence file
    {
        echo "vfio-user-tpm contains these packages from crates.io."
        while IFS='|' read -r name version licence; do
            printf '\n== %s %s: %s\n' "$name" "$version" "$licence"
            for file in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$version"/*; do
                case ${file##*/} in
                LICENSE-APACHE* | LICENSE-Apache*) ;;
                [Ll][Ii][Cc][Ee][Nn][CcSs][Ee]* | COPYING* | COPYRIGHT* | NOTICE* | UNLICENSE*)
                    echo
                    cat "$file"
                    ;;
                esac
            done
        done < <(cargo tree --locked --edges normal,no-proc-macro --prefix none --no-dedupe --format '{p}|{l}' |
            sed -n '/^vfio-user-tpm /!s/^\([^ ]*\) v\([^ |]*\)[^|]*|/\1|\2|/p' | sort -u)
    } >"$1"
}

# Gives all files below $1 the same time.
set_times() {
    find "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
}
