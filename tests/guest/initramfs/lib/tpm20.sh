# TPM 2.0 commands from the shell, for guests without tpm2-tools.
. /lib/exchange.sh

# tpm20_command TAG HEX: sends a command with what follows the size field, and prints what follows the code of its response,
# in hex. Fails unless the code is TPM_RC_SUCCESS.
tpm20_command() {
    # The header has 10 bytes, of which 4 are in $2.
    tpm20_response=$(tpm_exchange "$1$(printf %08x $((6 + ${#2} / 2)))$2")
    case $tpm20_response in
    $1????????00000000*) echo "${tpm20_response#????????????????????}" ;;
    *)
        echo "the TPM answers $2 with '$tpm20_response'" >&2
        return 1
        ;;
    esac
}

# tpm20_getrandom COUNT: TPM2_GetRandom, prints the bytes in hex.
tpm20_getrandom() {
    tpm20_random=$(tpm20_command 8001 "0000017b$(printf %04x "$1")") || return
    echo "${tpm20_random#????}"
}

# tpm20_extend PCR DIGEST: TPM2_PCR_Extend of the SHA-256 bank, with the empty password.
tpm20_extend() {
    tpm20_session=00000009400000090000000000
    tpm20_command 8002 "00000182$(printf %08x "$1")${tpm20_session}00000001000b$2" >/dev/null
}

# tpm20_pcr_read PCR: prints its SHA-256 value in hex, as the kernel reads it.
tpm20_pcr_read() { tr A-F a-f </sys/class/tpm/tpm0/pcr-sha256/"$1"; }
