# Debian packages of suites that this machine need not follow, for the kits that the tests bring along. Needs no root rights
# and installs nothing. To be sourced; $kit is the kit's folder, and `say` and `die` are the words of the script.
# shellcheck shell=bash

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# The architectures whose packages are looked at, the machine's first; with commas.
: "${ARCHITECTURES:=amd64}"

# What the functions below need of the machine.
need_package_tools() {
    command -v apt-get dpkg-deb >/dev/null || die "apt-get and dpkg-deb are needed: the kit is made of Debian packages"
    [[ $(dpkg --print-architecture) == amd64 ]] || die "the kit is for amd64 machines, this is $(dpkg --print-architecture)"
    [[ -r $KEYRING ]] || die "$KEYRING is missing: run 'apt-get install debian-archive-keyring'"
}

# Debian mirrors among the machine's own apt sources, best guess first. Only suites named like Debian's, or like $1, are
# looked at; that the mirror is Debian's own, the signature of its index proves later.
mirrors() {
    local codename
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    apt-get --print-uris update 2>/dev/null |
        sed -nE "s#^'([^']+)/dists/(${codename:-stable}|$1|stable|testing|unstable|sid)/InRelease'.*#\1#p" |
        awk '!seen[$0]++'
}

# apt with sources, lists, cache and package status of its own, below $1; proxies and the like stay the machine's.
kit_apt() {
    local state=$1
    shift
    apt-get --config-file "$state/apt.conf" "$@"
}

# Prepares the folder $1 for kit_apt.
write_apt_config() {
    mkdir -p "$1"/{lists,archives}/partial "$1/cache"
    # No package counts as installed, so the kit gets all that its packages need.
    : >"$1/status"
    # The hooks would run on the host's behalf; a mirror may be a snapshot of another day; without the error mode apt takes
    # an index that it could not get for a mere warning.
    cat >"$1/apt.conf" <<CONFIG
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$1";
Dir::State::lists "$1/lists";
Dir::State::status "$1/status";
Dir::Cache "$1/cache";
Dir::Cache::archives "$1/archives";
APT::Architecture "${ARCHITECTURES%%,*}";
APT::Architectures "$ARCHITECTURES";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
APT::Update::Error-Mode "any";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
CONFIG
}

# Gets the packages named in $4… and all that they need, from the suites $3, as .deb files in $1/archives; $2 says how much
# that is. Options for apt may stand among the packages.
download() {
    local state=$1 size=$2 suites suite mirror log tried=()
    read -ra suites <<<"$3"
    shift 3
    log=$state/apt.log
    write_apt_config "$state"
    while read -r mirror; do
        say "asking $mirror for ${suites[*]}"
        for suite in "${suites[@]}"; do
            printf "deb [arch=$ARCHITECTURES target=Packages signed-by=$KEYRING] %s %s main\n" "$mirror" "$suite"
        done >"$state/sources.list"
        echo "== $mirror" >>"$log"
        if kit_apt "$state" update >>"$log" 2>&1; then
            say "downloading the packages ($size)"
            if kit_apt "$state" --yes --download-only install "$@" >>"$log" 2>&1; then
                return
            fi
            grep -E '^(E|W):' "$log" >&2 || true
            die "a package cannot be had; the lines above are apt's, all of them are in $(keep_log "$log")"
        fi
        tried+=("$mirror")
    done < <(mirrors "${suites[0]}")

    ((${#tried[@]} > 0)) ||
        die "no Debian mirror in this machine's apt sources" "see what 'apt-get --print-uris update' prints"
    grep -E '^(E|W|Err):' "$log" >&2 || true
    die "no package index for ${suites[*]} from ${tried[*]}; apt's lines are above and in $(keep_log "$log")" \
        "no connection or no name resolution: this machine needs the network once, to get the kit" \
        "NO_PUBKEY: the keys are older than ${suites[0]}: run 'apt-get install --only-upgrade debian-archive-keyring'"
}

# Gets the packages named in $3… alone, without what they need, after `download`; $2 is the release that they come from.
download_alone() {
    local state=$1 release=$2 log=$1/apt.log
    shift 2
    (cd "$state/archives" && kit_apt "$state" --target-release "$release" download "$@") >>"$log" 2>&1 || {
        grep -E '^(E|W):' "$log" >&2 || true
        die "a package cannot be had; the lines above are apt's, all of them are in $(keep_log "$log")"
    }
}

# The packages that $3 is made of by its dependencies and whose names begin with $4, from the release $2.
parts_of() {
    apt-cache --config-file "$1/apt.conf" --target-release "$2" --important --recurse depends "$3" | grep "^$4.*:"
}

# The build folder goes away with the script; a log that the user is sent to must not.
keep_log() {
    cp "$1" "${kit:?}.apt.log"
    echo "$kit.apt.log"
}

# Unpacks what was downloaded to $1 into the new folder $2.
unpack() {
    local deb
    say "unpacking"
    mkdir "$2"
    for deb in "$1"/archives/*.deb; do
        dpkg-deb --extract "$deb" "$2"
    done
}
