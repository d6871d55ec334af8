# One command for the TPM, through /dev/tpm0.

# tpm_exchange HEX: sends a command, and prints the response in hex.
tpm_exchange() {
    echo "$1" | xxd -r -p >/tmp/tpm.command
    # One write for the command, one read for the response: so does the device have it.
    exec 3<>/dev/tpm0 || return
    dd bs=4096 count=1 </tmp/tpm.command >&3 2>/dev/null
    dd bs=4096 count=1 <&3 2>/dev/null | xxd -p | tr -d '\n'
    exec 3>&-
}
