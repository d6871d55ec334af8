//! What each command of TPM 2.0 and its response consist of, and what of it may be shown.
//!
//! Source: TPM 2.0 Library Part 3, Commands. What is not here - commands of manufacturers, of later revisions - is hidden.

use super::part::Part::{self, Capability, HiddenRest, Public, PublicKey, Scheme, Secret, Shown, ShownRest, Symmetric};
use super::part::{
    ALGORITHMS, COMMAND_CODES, DIGEST_VALUES, DIGESTS, PCR_SELECTION, SECRET_DIGEST_VALUES, SECRET_DIGESTS,
};

/// A command and its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    code: u32,
    /// How many handles are in front of the command's sessions.
    pub(super) handles: usize,
    pub(super) parameters: &'static [Part],
    /// How many handles are in front of the response's parameters.
    pub(super) response_handles: usize,
    pub(super) response: &'static [Part],
}

/// The layout of a command by its code.
pub(super) fn layout(code: u32) -> Option<&'static Layout> {
    LAYOUTS.iter().find(|layout| layout.code == code)
}

/// A command, to which the response has no parameters.
const fn command(code: u32, handles: usize, parameters: &'static [Part]) -> Layout {
    Layout { code, handles, parameters, response_handles: 0, response: &[] }
}

impl Layout {
    const fn answer(self, response_handles: usize, response: &'static [Part]) -> Self {
        Self { response_handles, response, ..self }
    }
}

/// A nonce, a reference, a name, a public area, what is attested. For the reader.
const NONCE: Part = Public;
const POLICY_REF: Part = Public;
const NAME: Part = Public;
const PUBLIC_AREA: Part = Public;
const ATTEST: Part = Public;
/// Hashes over what may be hidden, by which it could be guessed: a policy (TPM2_PolicyNV puts into it what is compared with NV
/// memory), and the parameters of a command.
const POLICY: Part = Secret;
const PARAMETER_HASH: Part = Secret;
/// A point that is sent to others.
const POINT: Part = Public;

/// `TPMT_TK_*`: tag, hierarchy, and a digest that may authorize.
const TICKET_KIND: Part = Shown(6);
const TICKET_DIGEST: Part = Secret;

/// `TPMT_SIGNATURE`, which is always the last: its algorithm.
const SIGNATURE: Part = Shown(2);
/// `TPMS_CONTEXT`: sequence, handle and hierarchy; then what is saved.
const CONTEXT: &[Part] = &[Shown(16), Secret];

const ATTESTED: &[Part] = &[ATTEST, SIGNATURE, HiddenRest];
/// What is attested is in NV memory, or a hash over parameters.
const ATTESTED_SECRET: &[Part] = &[Secret, SIGNATURE, HiddenRest];

/// In the order of their codes.
#[rustfmt::skip]
const LAYOUTS: &[Layout] = &[
    /* NV_UndefineSpaceSpecial   */ command(0x11f, 2, &[]),
    /* EvictControl              */ command(0x120, 2, &[Shown(4)]),
    /* HierarchyControl          */ command(0x121, 1, &[Shown(4 + 1)]),
    /* NV_UndefineSpace          */ command(0x122, 2, &[]),
    /* ChangeEPS                 */ command(0x124, 1, &[]),
    /* ChangePPS                 */ command(0x125, 1, &[]),
    /* Clear                     */ command(0x126, 1, &[]),
    /* ClearControl              */ command(0x127, 1, &[Shown(1)]),
    /* ClockSet                  */ command(0x128, 1, &[Shown(8)]),
    /* HierarchyChangeAuth       */ command(0x129, 1, &[Secret]),
    /* NV_DefineSpace            */ command(0x12a, 1, &[Secret, PUBLIC_AREA]),
    /* PCR_Allocate              */ command(0x12b, 1, &[PCR_SELECTION]).answer(0, &[Shown(1 + 3 * 4)]),
    /* PCR_SetAuthPolicy         */ command(0x12c, 1, &[POLICY, Shown(2 + 4)]),
    /* PP_Commands               */ command(0x12d, 1, &[COMMAND_CODES, COMMAND_CODES]),
    /* SetPrimaryPolicy          */ command(0x12e, 1, &[POLICY, Shown(2)]),
    /* FieldUpgradeStart         */ command(0x12f, 2, &[HiddenRest]),
    /* ClockRateAdjust           */ command(0x130, 1, &[Shown(1)]),
    /* CreatePrimary             */ command(0x131, 1, &[Secret, PUBLIC_AREA, Public, PCR_SELECTION])
                                    .answer(1, &[PUBLIC_AREA, Public, Public, TICKET_KIND, TICKET_DIGEST, NAME]),
    /* NV_GlobalWriteLock        */ command(0x132, 1, &[]),
    /* GetCommandAuditDigest     */ command(0x133, 2, &[NONCE, Scheme]).answer(0, ATTESTED_SECRET),
    /* NV_Increment              */ command(0x134, 2, &[]),
    /* NV_SetBits                */ command(0x135, 2, &[HiddenRest]),
    /* NV_Extend                 */ command(0x136, 2, &[Secret]),
    /* NV_Write                  */ command(0x137, 2, &[Secret, Shown(2)]),
    /* NV_WriteLock              */ command(0x138, 2, &[]),
    /* DictionaryAttackLockReset */ command(0x139, 1, &[]),
    /* DictionaryAttackParameters*/ command(0x13a, 1, &[Shown(3 * 4)]),
    /* NV_ChangeAuth             */ command(0x13b, 1, &[Secret]),
    /* PCR_Event                 */ command(0x13c, 1, &[Secret]).answer(0, &[SECRET_DIGEST_VALUES]),
    /* PCR_Reset                 */ command(0x13d, 1, &[]),
    /* SequenceComplete          */ command(0x13e, 1, &[Secret, Shown(4)]).answer(0, &[Secret, TICKET_KIND, TICKET_DIGEST]),
    /* SetAlgorithmSet           */ command(0x13f, 1, &[Shown(4)]),
    /* SetCommandCodeAuditStatus */ command(0x140, 1, &[Shown(2), COMMAND_CODES, COMMAND_CODES]),
    /* FieldUpgradeData          */ command(0x141, 0, &[HiddenRest]).answer(0, &[HiddenRest]),
    /* IncrementalSelfTest       */ command(0x142, 0, &[ALGORITHMS]).answer(0, &[ALGORITHMS]),
    /* SelfTest                  */ command(0x143, 0, &[Shown(1)]),
    /* Startup                   */ command(0x144, 0, &[Shown(2)]),
    /* Shutdown                  */ command(0x145, 0, &[Shown(2)]),
    /* StirRandom                */ command(0x146, 0, &[Secret]),
    /* ActivateCredential        */ command(0x147, 2, &[Secret, Secret]).answer(0, &[Secret]),
    /* Certify                   */ command(0x148, 2, &[NONCE, Scheme]).answer(0, ATTESTED),
    // The operand is compared with what is in NV memory.
    /* PolicyNV                  */ command(0x149, 3, &[Secret, Shown(2 + 2)]),
    /* CertifyCreation           */ command(0x14a, 2, &[NONCE, Public, Scheme, TICKET_KIND, TICKET_DIGEST]).answer(0, ATTESTED),
    /* Duplicate                 */ command(0x14b, 2, &[Secret, Symmetric]).answer(0, &[Secret, Secret, Secret]),
    /* GetTime                   */ command(0x14c, 2, &[NONCE, Scheme]).answer(0, ATTESTED),
    /* GetSessionAuditDigest     */ command(0x14d, 3, &[NONCE, Scheme]).answer(0, ATTESTED_SECRET),
    /* NV_Read                   */ command(0x14e, 2, &[Shown(2 + 2)]).answer(0, &[Secret]),
    /* NV_ReadLock               */ command(0x14f, 2, &[]),
    /* ObjectChangeAuth          */ command(0x150, 2, &[Secret]).answer(0, &[Secret]),
    /* PolicySecret              */ command(0x151, 2, &[NONCE, PARAMETER_HASH, POLICY_REF, Shown(4)])
                                    .answer(0, &[Public, TICKET_KIND, TICKET_DIGEST]),
    /* Rewrap                    */ command(0x152, 2, &[Secret, NAME, Secret]).answer(0, &[Secret, Secret]),
    /* Create                    */ command(0x153, 1, &[Secret, PUBLIC_AREA, Public, PCR_SELECTION])
                                    .answer(0, &[Secret, PUBLIC_AREA, Public, Public, TICKET_KIND, TICKET_DIGEST]),
    /* ECDH_ZGen                 */ command(0x154, 1, &[POINT]).answer(0, &[Secret]),
    /* HMAC, MAC                 */ command(0x155, 1, &[Secret, Shown(2)]).answer(0, &[Secret]),
    /* Import                    */ command(0x156, 1, &[Secret, PublicKey, Secret, Secret, Symmetric]).answer(0, &[Secret]),
    /* Load                      */ command(0x157, 1, &[Secret, PUBLIC_AREA]).answer(1, &[NAME]),
    /* Quote                     */ command(0x158, 1, &[NONCE, Scheme, PCR_SELECTION]).answer(0, ATTESTED),
    /* RSA_Decrypt               */ command(0x159, 1, &[Secret, Scheme, Secret]).answer(0, &[Secret]),
    /* HMAC_Start, MAC_Start     */ command(0x15b, 1, &[Secret, Shown(2)]).answer(1, &[]),
    /* SequenceUpdate            */ command(0x15c, 1, &[Secret]),
    /* Sign                      */ command(0x15d, 1, &[Secret, Scheme, TICKET_KIND, TICKET_DIGEST])
                                    .answer(0, &[SIGNATURE, HiddenRest]),
    /* Unseal                    */ command(0x15e, 1, &[]).answer(0, &[Secret]),
    /* PolicySigned              */ command(0x160, 2, &[NONCE, PARAMETER_HASH, POLICY_REF, Shown(4), SIGNATURE, HiddenRest])
                                    .answer(0, &[Public, TICKET_KIND, TICKET_DIGEST]),
    /* ContextLoad               */ command(0x161, 0, CONTEXT).answer(1, &[]),
    /* ContextSave               */ command(0x162, 1, &[]).answer(0, CONTEXT),
    /* ECDH_KeyGen               */ command(0x163, 1, &[]).answer(0, &[Secret, POINT]),
    /* EncryptDecrypt            */ command(0x164, 1, &[Shown(1 + 2), Secret, Secret]).answer(0, &[Secret, Secret]),
    // Its handle is a parameter.
    /* FlushContext              */ command(0x165, 0, &[Shown(4)]),
    /* LoadExternal              */ command(0x167, 0, &[Secret, PublicKey, Shown(4)]).answer(1, &[Secret]),
    /* MakeCredential            */ command(0x168, 1, &[Secret, NAME]).answer(0, &[Secret, Secret]),
    /* NV_ReadPublic             */ command(0x169, 1, &[]).answer(0, &[PUBLIC_AREA, NAME]),
    /* PolicyAuthorize           */ command(0x16a, 1, &[POLICY, POLICY_REF, NAME, TICKET_KIND, TICKET_DIGEST]),
    /* PolicyAuthValue           */ command(0x16b, 1, &[]),
    /* PolicyCommandCode         */ command(0x16c, 1, &[Shown(4)]),
    /* PolicyCounterTimer        */ command(0x16d, 1, &[Public, Shown(2 + 2)]),
    /* PolicyCpHash              */ command(0x16e, 1, &[PARAMETER_HASH]),
    /* PolicyLocality            */ command(0x16f, 1, &[Shown(1)]),
    /* PolicyNameHash            */ command(0x170, 1, &[Public]),
    /* PolicyOR                  */ command(0x171, 1, &[SECRET_DIGESTS]),
    /* PolicyTicket              */ command(0x172, 1, &[Public, PARAMETER_HASH, POLICY_REF, NAME, TICKET_KIND, TICKET_DIGEST]),
    /* ReadPublic                */ command(0x173, 1, &[]).answer(0, &[PUBLIC_AREA, NAME, NAME]),
    /* RSA_Encrypt               */ command(0x174, 1, &[Secret, Scheme, Secret]).answer(0, &[Secret]),
    /* StartAuthSession          */ command(0x176, 2, &[NONCE, Secret, Shown(1), Symmetric, Shown(2)]).answer(1, &[NONCE]),
    /* VerifySignature           */ command(0x177, 1, &[Secret, SIGNATURE, HiddenRest]).answer(0, &[TICKET_KIND, TICKET_DIGEST]),
    /* ECC_Parameters            */ command(0x178, 0, &[Shown(2)]).answer(0, &[ShownRest]),
    /* FirmwareRead              */ command(0x179, 0, &[Shown(4)]).answer(0, &[HiddenRest]),
    /* GetCapability             */ command(0x17a, 0, &[Shown(3 * 4)]).answer(0, &[Shown(1), Capability]),
    /* GetRandom                 */ command(0x17b, 0, &[Shown(2)]).answer(0, &[Secret]),
    /* GetTestResult             */ command(0x17c, 0, &[]).answer(0, &[Secret, Shown(4)]),
    /* Hash                      */ command(0x17d, 0, &[Secret, Shown(2 + 4)]).answer(0, &[Secret, TICKET_KIND, TICKET_DIGEST]),
    /* PCR_Read                  */ command(0x17e, 0, &[PCR_SELECTION]).answer(0, &[Shown(4), PCR_SELECTION, DIGESTS]),
    /* PolicyPCR                 */ command(0x17f, 1, &[Public, PCR_SELECTION]),
    /* PolicyRestart             */ command(0x180, 1, &[]),
    /* ReadClock                 */ command(0x181, 0, &[]).answer(0, &[Shown(8 + 8 + 4 + 4 + 1)]),
    /* PCR_Extend                */ command(0x182, 1, &[DIGEST_VALUES]),
    /* PCR_SetAuthValue          */ command(0x183, 1, &[Secret]),
    /* NV_Certify                */ command(0x184, 3, &[NONCE, Scheme, Shown(2 + 2)]).answer(0, ATTESTED_SECRET),
    /* EventSequenceComplete     */ command(0x185, 2, &[Secret]).answer(0, &[SECRET_DIGEST_VALUES]),
    /* HashSequenceStart         */ command(0x186, 0, &[Secret, Shown(2)]).answer(1, &[]),
    /* PolicyPhysicalPresence    */ command(0x187, 1, &[]),
    /* PolicyDuplicationSelect   */ command(0x188, 1, &[NAME, NAME, Shown(1)]),
    /* PolicyGetDigest           */ command(0x189, 1, &[]).answer(0, &[POLICY]),
    /* TestParms                 */ command(0x18a, 0, &[Shown(2), HiddenRest]),
    /* Commit                    */ command(0x18b, 1, &[Secret, Secret, Secret]).answer(0, &[Secret, Secret, Secret, Shown(2)]),
    /* PolicyPassword            */ command(0x18c, 1, &[]),
    /* ZGen_2Phase               */ command(0x18d, 1, &[POINT, POINT, Shown(2 + 2)]).answer(0, &[Secret, Secret]),
    /* EC_Ephemeral              */ command(0x18e, 0, &[Shown(2)]).answer(0, &[POINT, Shown(2)]),
    /* PolicyNvWritten           */ command(0x18f, 1, &[Shown(1)]),
    /* PolicyTemplate            */ command(0x190, 1, &[Public]),
    /* CreateLoaded              */ command(0x191, 1, &[Secret, PUBLIC_AREA]).answer(1, &[Secret, PUBLIC_AREA, NAME]),
    /* PolicyAuthorizeNV         */ command(0x192, 3, &[]),
    /* EncryptDecrypt2           */ command(0x193, 1, &[Secret, Shown(1 + 2), Secret]).answer(0, &[Secret, Secret]),
    /* AC_GetCapability          */ command(0x194, 1, &[Shown(2 * 4)]).answer(0, &[HiddenRest]),
    /* AC_Send                   */ command(0x195, 3, &[Secret]).answer(0, &[HiddenRest]),
    /* Policy_AC_SendSelect      */ command(0x196, 1, &[NAME, NAME, NAME, Shown(1)]),
    /* CertifyX509               */ command(0x197, 2, &[Public, Scheme, Public]).answer(0, &[Public, Public, SIGNATURE, HiddenRest]),
    /* ACT_SetTimeout            */ command(0x198, 1, &[Shown(4)]),
    /* ECC_Encrypt               */ command(0x199, 1, &[Secret, Scheme]).answer(0, &[Secret, Secret, Secret]),
    /* ECC_Decrypt               */ command(0x19a, 1, &[Secret, Secret, Secret, Scheme]).answer(0, &[Secret]),
    /* PolicyCapability          */ command(0x19b, 1, &[Public, Shown(2 + 2 + 4 + 4)]),
    /* PolicyParameters          */ command(0x19c, 1, &[PARAMETER_HASH]),
    /* NV_DefineSpace2           */ command(0x19d, 1, &[Secret, PUBLIC_AREA]),
    /* NV_ReadPublic2            */ command(0x19e, 1, &[]).answer(0, &[PUBLIC_AREA, NAME]),
    /* ReadOnlyControl           */ command(0x1a0, 1, &[Shown(1)]),
    /* PolicyTransportSPDM       */ command(0x1a1, 1, &[NAME, NAME]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::tpm20;

    #[test]
    fn each_command_is_listed_once_and_in_order() {
        assert!(LAYOUTS.is_sorted_by(|one, next| one.code < next.code));
    }

    #[test]
    fn each_command_that_has_a_name_is_listed_or_hidden_on_purpose() {
        const HIDDEN: &[&str] = &["TPM2_SetCapability", "TPM2_Vendor_TCG_Test"];
        let unlisted = tpm20::COMMANDS.iter().filter(|(code, _)| layout(*code).is_none());
        assert_eq!(unlisted.map(|(_, name)| *name).collect::<Vec<_>>(), HIDDEN);
        let named = |code| tpm20::COMMANDS.iter().any(|(named, _)| *named == code);
        for Layout { code, .. } in LAYOUTS {
            assert!(named(*code), "{code:#x}");
        }
    }
}
