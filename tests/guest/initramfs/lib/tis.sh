# TIS registers from the shell, through /dev/mem. The kernel's driver must have let go of the device (tis_unbind), and the
# kernel must run with iomem=relaxed.

# Takes the device from the kernel's driver and finds where its registers are.
tis_unbind() {
    echo MSFT0101:00 >/sys/bus/platform/drivers/tpm_tis/unbind || return
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat "$device/class")" = 0x108000 ] || continue
        read -r TIS_BASE _ <"$device/resource"
        return 0
    done
    echo "no PCI device of class 0x108000" >&2
    return 1
}

# tis_read LOCALITY OFFSET and tis_write LOCALITY OFFSET VALUE: one byte.
tis_read() { devmem $((TIS_BASE + $1 * 0x1000 + $2)) 8; }
tis_write() { devmem $((TIS_BASE + $1 * 0x1000 + $2)) 8 "$3"; }

# tis_await LOCALITY OFFSET MASK VALUE: until the masked register has the value.
tis_await() {
    tries=1000
    while [ $(($(tis_read "$1" "$2") & $3)) != $(($4)) ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || {
            echo "register $2 of locality $1 stays $(tis_read "$1" "$2"), wanted $4 under mask $3" >&2
            return 1
        }
    done
}

# tis_request LOCALITY, tis_release LOCALITY
tis_request() { tis_write "$1" 0x00 0x02 && tis_await "$1" 0x00 0xa0 0xa0; }
tis_release() { tis_write "$1" 0x00 0x20; }

# tis_command LOCALITY HEX: sends a command from a locality that is active, and prints the response in hex.
tis_command() {
    tis_write "$1" 0x18 0x40
    tis_await "$1" 0x18 0x40 0x40 || return
    for byte in $(echo "$2" | sed 's/../0x& /g'); do
        tis_write "$1" 0x24 "$byte"
    done
    # stsValid and no Expect: the command is whole.
    tis_await "$1" 0x18 0x88 0x80 || return
    tis_write "$1" 0x18 0x20
    tis_await "$1" 0x18 0x90 0x90 || return
    while [ $(($(tis_read "$1" 0x18) & 0x10)) != 0 ]; do
        printf %02x "$(tis_read "$1" 0x24)"
    done
    echo
    tis_write "$1" 0x18 0x40
}

# tis_pcr_extend LOCALITY PCR: TPM2_PCR_Extend with a SHA-256 digest of 32 bytes 0x5a; prints the response code in hex.
tis_pcr_extend() {
    session=00000009400000090000000000
    digest=$(printf '5a%.0s' $(seq 32))
    response=$(tis_command "$1" "80020000004100000182$(printf %08x "$2")${session}00000001000b$digest") || return
    echo "$response" | cut -c 13-20
}

# tis_pcr_read LOCALITY PCR (16 to 23): TPM2_PCR_Read; prints the SHA-256 value in hex.
tis_pcr_read() {
    response=$(tis_command "$1" "8001000000140000017e00000001000b030000$(printf %02x $((1 << ($2 - 16))))") || return
    echo "$response" | cut -c 61-
}
