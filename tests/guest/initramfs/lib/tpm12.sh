# TPM 1.2 commands from the shell: tpm2-tools speak 2.0 only.
. /lib/exchange.sh

# tpm12_command HEX: sends what follows the size field of a command without authorisation (ordinal, parameters), and prints
# what follows the code of its response, in hex. Fails unless the code is TPM_SUCCESS.
tpm12_command() {
    # TPM_TAG_RQU_COMMAND, and a header of 10 bytes of which 4 are in $1.
    tpm12_response=$(tpm_exchange "00c1$(printf %08x $((6 + ${#1} / 2)))$1")
    case $tpm12_response in
    00c4????????00000000*) echo "${tpm12_response#????????????????????}" ;;
    *)
        echo "the TPM answers $1 with '$tpm12_response'" >&2
        return 1
        ;;
    esac
}

# tpm12_pcr_read PCR: prints its SHA-1 value in hex.
tpm12_pcr_read() { tpm12_command "00000015$(printf %08x "$1")"; }

# tpm12_extend PCR DIGEST: prints the PCR's new value.
tpm12_extend() { tpm12_command "00000014$(printf %08x "$1")$2"; }

# tpm12_get_capability AREA [SUBAREA]: prints the answer, without its size. Numbers as TPM_GetCapability has them.
tpm12_get_capability() {
    tpm12_subarea=
    [ $# = 1 ] || tpm12_subarea=$(printf %08x "$2")
    tpm12_answer=$(tpm12_command "00000065$(printf %08x%08x "$1" $((${#tpm12_subarea} / 2)))$tpm12_subarea") || return
    echo "${tpm12_answer#????????}"
}

# NV memory. As long as nobody has locked it (TPM_NV_INDEX_LOCK), no authorisation is asked for.

# tpm12_nv_define INDEX SIZE: TPM_NV_DefineSpace, for the owner to write and for all to read, in any PCR state and from any
# locality.
tpm12_nv_define() {
    tpm12_zeroes=0000000000000000000000000000000000000000
    tpm12_pcr_info=00030000001f$tpm12_zeroes
    tpm12_command "000000cc0018$(printf %08x "$1")$tpm12_pcr_info${tpm12_pcr_info}001700000002000000$(printf %08x "$2")$tpm12_zeroes"
}

# tpm12_nv_write INDEX TEXT
tpm12_nv_write() { tpm12_command "000000cd$(printf %08x00000000%08x "$1" ${#2})$(printf %s "$2" | xxd -p | tr -d '\n')"; }

# tpm12_nv_read INDEX SIZE: prints the data in hex.
tpm12_nv_read() {
    tpm12_answer=$(tpm12_command "000000cf$(printf %08x00000000%08x "$1" "$2")") || return
    echo "${tpm12_answer#????????}"
}
