# Shared by the two boots of the demo. The host shows the lines that begin with "guest: ".
# shellcheck shell=dash
# shellcheck disable=SC2034 # sourced, so not all is used here

say() { echo "guest: $*"; }
# Runs a command, after saying which, and shows what it prints.
show() {
    say "\$ $*"
    status=0
    "$@" >/run/shown 2>/run/complaints || status=$?
    cat /run/shown /run/complaints | while IFS= read -r line || [ -n "$line" ]; do
        say "  $line"
    done
    [ $status = 0 ] || fail "$*"
}
fail() {
    say "FAILED: $*"
    exit 1
}
pcr() { tpm2_pcrread -Q -o /run/pcr "sha256:$1" && xxd -p -c 32 /run/pcr; }

ZERO=$(printf '00%.0s' $(seq 32))
NV_INDEX=0x1500016

the_kernel_found_it() {
    say
    say "The kernel has found the TPM:"
    dmesg | grep 'tpm_[a-z_]* MSFT' | sed 's/^/guest:   /'
    say "  driver: $(basename "$(readlink /sys/class/tpm/tpm0/device/driver)")"
    [ -c /dev/tpmrm0 ] || fail "there is no /dev/tpmrm0"
}
