# What `demo` and `test` need of the machine. To be sourced by them; $me is the name under which they speak.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the lists are for the scripts that source this

say() { echo "${me:?}: $*"; }
die() {
    printf '%s: error: %s\n' "${me:?}" "$@" >&2
    exit 1
}

# What a build needs: a linker, libtpms, libcrypto, and libclang with its headers, with which bindgen reads those of libtpms.
BUILD_PACKAGES=(gcc libc6-dev pkg-config libtpms-dev libssl-dev libclang-dev)
# What the tests of the swtpm backend run.
SWTPM_PACKAGES=(swtpm)
# What fetching the kits needs.
KIT_PACKAGES=(ca-certificates debian-archive-keyring)

# Installs those of the Debian packages $@ that are missing.
need_packages() {
    local package missing=() as_root=()
    command -v apt-get dpkg-query >/dev/null || die "no apt-get here: this script is for Debian 12 or newer"
    for package in "$@"; do
        # shellcheck disable=SC2016 # dpkg-query's own variable
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        say "Debian packages: all there ($*)"
        return
    fi
    say "Debian packages: installing ${missing[*]}"
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            die "not root and no sudo; run this as root: apt-get install --no-install-recommends ${missing[*]}"
        as_root=(sudo)
        # Without a terminal nobody can type a password.
        [[ -t 0 ]] || as_root+=(-n)
    fi
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
    if ! "${apt[@]}" update || ! "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null; then
        die "apt-get could not install ${missing[*]}; its lines are above"
    fi
}

# Finds Rust; does not install it.
need_rust() {
    local wanted version how="get it with rustup (https://rustup.rs), or on Debian 13 with: apt-get install cargo"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo rustc >/dev/null || die "no Rust here ($wanted or newer is needed); $how"
    version=$(rustc --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n' "$wanted" "$version" | sort --version-sort | head -n 1) == "$wanted" ]] ||
        die "Rust $wanted or newer is needed, this is $version; $how"
    say "Rust: $version"
}
