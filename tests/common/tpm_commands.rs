//! TPM 2.0 commands as bytes, for tests, after TPM 2.0 Library Part 3.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of them")]

/// A command without sessions.
pub fn plain(code: u32, parameters: &[u8]) -> Vec<u8> {
    command(0x8001, code, parameters)
}

/// A command on one handle, authorized by an empty password.
pub fn with_password(code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    with_this_password(b"", code, handles, parameters)
}

/// A command on one handle, authorized by a password.
pub fn with_this_password(password: &[u8], code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    body.extend(u32::try_from(9 + password.len()).unwrap().to_be_bytes());
    // TPM_RS_PW, no nonce, no attributes.
    body.extend([0x40, 0, 0, 9, 0, 0, 0]);
    body.extend(sized(password));
    body.extend(parameters);
    command(0x8002, code, &body)
}

/// A TPM2B.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn command(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + body.len()).unwrap();
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// The response code of a response.
pub fn code_of(response: &[u8]) -> u32 {
    assert!(response.len() >= 10, "a response has a header: {response:02x?}");
    assert_eq!(u32_at(response, 2) as usize, response.len(), "a response has the size it says");
    u32_at(response, 6)
}

pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(*bytes[offset..].first_chunk().unwrap())
}

pub const RC_SUCCESS: u32 = 0;
pub const RC_FAILURE: u32 = 0x101;
pub const RC_COMMAND_SIZE: u32 = 0x142;
pub const RC_CANCELED: u32 = 0x909;
pub const RC_RETRY: u32 = 0x922;
/// Bad authorization, first session.
pub const RC_BAD_AUTH: u32 = 0x9a2;
pub const RC_LOCALITY: u32 = 0x907;

const RH_OWNER: u32 = 0x4000_0001;
const RH_PLATFORM: u32 = 0x4000_000c;
const RH_NULL: u32 = 0x4000_0007;

pub const ALG_RSASSA: u16 = 0x14;
pub const ALG_ECDSA: u16 = 0x18;

pub fn startup_clear() -> Vec<u8> {
    plain(0x144, &[0, 0])
}

/// `TPM2_Shutdown(CLEAR)`.
pub fn shutdown_clear() -> Vec<u8> {
    plain(0x145, &[0, 0])
}

pub fn get_random(count: u16) -> Vec<u8> {
    plain(0x17b, &count.to_be_bytes())
}

/// `TPM2_PCR_Extend` of one SHA-256 digest.
pub fn pcr_extend(pcr: u32, digest: [u8; 32]) -> Vec<u8> {
    with_password(0x182, &[pcr], &[&[0, 0, 0, 1, 0, 0x0b][..], &digest].concat())
}

/// `TPM2_PCR_Read` of one PCR of the SHA-256 bank; the digest is the last 32 bytes of the response.
pub fn pcr_read(pcr: u32) -> Vec<u8> {
    let mut select = [0; 3];
    select[pcr as usize / 8] = 1 << (pcr % 8);
    plain(0x17e, &[&[0, 0, 0, 1, 0, 0x0b, 3][..], &select].concat())
}

pub fn digest_of(pcr_read_response: &[u8]) -> [u8; 32] {
    assert_eq!(code_of(pcr_read_response), RC_SUCCESS);
    *pcr_read_response.last_chunk().unwrap()
}

/// `TPM2_Clear` with platform authorization.
pub fn clear_by_platform() -> Vec<u8> {
    with_password(0x126, &[RH_PLATFORM], &[])
}

/// `TPM2_NV_DefineSpace` of an ordinary index that its owner writes and reads, or who knows its (empty) authorization
/// value. The latter is under dictionary attack protection.
pub fn nv_define(index: u32, size: u16) -> Vec<u8> {
    nv_define_with_auth(index, size, b"")
}

/// As [`nv_define`], with an authorization value.
pub fn nv_define_with_auth(index: u32, size: u16, auth: &[u8]) -> Vec<u8> {
    // TPMA_NV_OWNERWRITE | TPMA_NV_OWNERREAD | TPMA_NV_AUTHREAD | TPMA_NV_AUTHWRITE
    let attributes: u32 = 0x2 | 0x2_0000 | 0x4 | 0x4_0000;
    let mut parameters = sized(auth);
    parameters.extend([0, 14]);
    parameters.extend(index.to_be_bytes());
    parameters.extend([0, 0x0b]);
    parameters.extend(attributes.to_be_bytes());
    parameters.extend([0, 0]);
    parameters.extend(size.to_be_bytes());
    with_password(0x12a, &[RH_OWNER], &parameters)
}

pub fn nv_write(index: u32, data: &[u8]) -> Vec<u8> {
    let size = u16::try_from(data.len()).unwrap().to_be_bytes();
    with_password(0x137, &[RH_OWNER, index], &[&size[..], data, &[0, 0]].concat())
}

pub fn nv_read(index: u32, size: u16) -> Vec<u8> {
    with_password(0x14e, &[RH_OWNER, index], &[&size.to_be_bytes()[..], &[0, 0]].concat())
}

/// `TPM2_NV_Read` by the index's own authorization: a use of what dictionary attack protection protects.
pub fn nv_read_protected(index: u32, size: u16) -> Vec<u8> {
    nv_read_with_auth(index, size, b"")
}

/// As [`nv_read_protected`], with the index's authorization value.
pub fn nv_read_with_auth(index: u32, size: u16, auth: &[u8]) -> Vec<u8> {
    with_this_password(auth, 0x14e, &[index, index], &[&size.to_be_bytes()[..], &[0, 0]].concat())
}

/// The data of a response to [`nv_read`].
pub fn nv_data(response: &[u8]) -> Vec<u8> {
    assert_eq!(code_of(response), RC_SUCCESS);
    let size = u16::from_be_bytes([response[14], response[15]]) as usize;
    response[16..16 + size].to_vec()
}

/// `TPM2_CreatePrimary` of an RSA signing key of this many bits, never the same twice: a long command.
pub fn create_primary_rsa(bits: u16, unique: u8) -> Vec<u8> {
    // TPMT_PUBLIC: RSA, SHA-256, fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | sign, no policy,
    // no symmetric algorithm, no scheme, exponent 0, unique.
    let mut public = vec![0, 1, 0, 0x0b, 0, 4, 0, 0x72, 0, 0, 0, 0x10, 0, 0x10];
    public.extend(bits.to_be_bytes());
    public.extend([0, 0, 0, 0, 0, 1, unique]);
    let mut parameters = vec![0, 4, 0, 0, 0, 0];
    parameters.extend(u16::try_from(public.len()).unwrap().to_be_bytes());
    parameters.extend(public);
    parameters.extend([0, 0, 0, 0, 0, 0]);
    with_password(0x131, &[RH_OWNER], &parameters)
}

/// `TPM2_CreatePrimary` of an ECC P-256 signing key: quick, and the same key each time.
pub fn create_primary_ecc() -> Vec<u8> {
    // TPMT_PUBLIC: ECC, SHA-256, fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | sign, no policy,
    // no symmetric algorithm, no scheme, P-256, no KDF, no unique.
    let public = [0, 0x23, 0, 0x0b, 0, 4, 0, 0x72, 0, 0, 0, 0x10, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0];
    let mut parameters = vec![0, 4, 0, 0, 0, 0];
    parameters.extend(u16::try_from(public.len()).unwrap().to_be_bytes());
    parameters.extend(public);
    parameters.extend([0, 0, 0, 0, 0, 0]);
    with_password(0x131, &[RH_OWNER], &parameters)
}

/// `TPM2_CreatePrimary` of an object that holds `data`, for who knows `auth`. The object's handle follows the header of the
/// response.
pub fn create_primary_sealed(data: &[u8], auth: &[u8]) -> Vec<u8> {
    // TPMT_PUBLIC: KEYEDHASH, SHA-256, fixedTPM | fixedParent | userWithAuth, no policy, no scheme, no unique.
    let public = [0, 8, 0, 0x0b, 0, 0, 0, 0x52, 0, 0, 0, 0x10, 0, 0];
    let mut parameters = sized(&[sized(auth), sized(data)].concat());
    parameters.extend(sized(&public));
    parameters.extend([0, 0, 0, 0, 0, 0]);
    with_password(0x131, &[RH_OWNER], &parameters)
}

pub fn unseal(object: u32, auth: &[u8]) -> Vec<u8> {
    with_this_password(auth, 0x15e, &[object], &[])
}

/// `TPM2_Hash` with SHA-256, for a hierarchy that nothing depends on.
pub fn hash(data: &[u8]) -> Vec<u8> {
    plain(0x17d, &[&sized(data)[..], &[0, 0x0b], &RH_NULL.to_be_bytes()].concat())
}

/// `TPM2_Sign` of a SHA-256 digest by a scheme: [`ALG_RSASSA`] or [`ALG_ECDSA`].
pub fn sign(key: u32, scheme: u16, digest: [u8; 32]) -> Vec<u8> {
    // TPMT_TK_HASHCHECK of a digest that the TPM has not made itself: TPM_ST_HASHCHECK, no hierarchy, no digest.
    let ticket = [&[0x80, 0x24][..], &RH_NULL.to_be_bytes(), &[0, 0]].concat();
    let parameters = [&sized(&digest)[..], &scheme.to_be_bytes(), &[0, 0x0b], &ticket].concat();
    with_password(0x15d, &[key], &parameters)
}

/// `TPM2_EvictControl`: makes an object of the owner's persistent.
pub fn evict_control(object: u32, persistent: u32) -> Vec<u8> {
    with_password(0x120, &[RH_OWNER, object], &persistent.to_be_bytes())
}

/// `TPM2_ReadPublic`: public area, name and qualified name.
pub fn read_public(object: u32) -> Vec<u8> {
    plain(0x173, &object.to_be_bytes())
}

/// `TPM2_GetCapability` of the persistent handles.
pub fn persistent_handles() -> Vec<u8> {
    plain(0x17a, &[&[0, 0, 0, 1][..], &0x8100_0000u32.to_be_bytes(), &[0, 0, 0, 64]].concat())
}

/// `TPM2_ReadClock`.
pub fn read_clock() -> Vec<u8> {
    plain(0x181, &[])
}

/// resetCount in the response to [`read_clock`]: behind time (8 bytes) and clock (8 bytes).
pub fn reset_count(response: &[u8]) -> u32 {
    assert_eq!(code_of(response), RC_SUCCESS);
    u32_at(response, 10 + 16)
}

/// `TPM2_FlushContext`.
pub fn flush(handle: u32) -> Vec<u8> {
    plain(0x165, &handle.to_be_bytes())
}

/// `TPM2_GetCapability` of one TPM property.
pub fn get_property(property: u32) -> Vec<u8> {
    plain(0x17a, &[&[0, 0, 0, 6][..], &property.to_be_bytes(), &[0, 0, 0, 1]].concat())
}

/// `TPM2_GetCapability` of the attributes of this many commands, as far as there are so many.
pub fn command_attributes(count: u32) -> Vec<u8> {
    plain(0x17a, &[&[0, 0, 0, 2, 0, 0, 0, 0][..], &count.to_be_bytes()].concat())
}

/// The value in the response to [`get_property`].
pub fn property_value(response: &[u8]) -> u32 {
    assert_eq!(code_of(response), RC_SUCCESS);
    u32_at(response, 23)
}

/// `TPM_PT_LOCKOUT_COUNTER`.
pub const PT_LOCKOUT_COUNTER: u32 = 0x20e;

/// TPM 1.2 commands, after TPM Main 1.2 Part 3.
pub mod tpm_1_2 {
    fn command(ordinal: u32, body: &[u8]) -> Vec<u8> {
        super::command(0x00c1, ordinal, body)
    }

    pub fn extend(pcr: u32, digest: [u8; 20]) -> Vec<u8> {
        command(0x14, &[&pcr.to_be_bytes()[..], &digest].concat())
    }

    pub fn pcr_read(pcr: u32) -> Vec<u8> {
        command(0x15, &pcr.to_be_bytes())
    }

    pub fn read_pubek(nonce: [u8; 20]) -> Vec<u8> {
        command(0x7c, &nonce)
    }

    /// `TPM_CreateEndorsementKeyPair`: RSA 2048, OAEP with SHA-1 and MGF1, no signature scheme.
    pub fn create_endorsement_key(nonce: [u8; 20]) -> Vec<u8> {
        let parameters = [0, 0, 0, 1, 0, 3, 0, 1, 0, 0, 0, 12, 0, 0, 8, 0, 0, 0, 0, 2, 0, 0, 0, 0];
        command(0x78, &[&nonce[..], &parameters].concat())
    }

    /// `TPM_NV_DefineSpace`, for the owner to write and for all to read, in any PCR state and from any locality. As long
    /// as nobody has locked NV memory (`TPM_NV_INDEX_LOCK`), no authorisation is asked for.
    pub fn nv_define(index: u32, size: u32) -> Vec<u8> {
        let any_pcrs = [&[0, 3, 0, 0, 0, 0x1f][..], &[0; 20]].concat();
        let mut body = vec![0, 0x18];
        body.extend(index.to_be_bytes());
        body.extend([&any_pcrs[..], &any_pcrs].concat());
        // TPM_TAG_NV_ATTRIBUTES, TPM_NV_PER_OWNERWRITE; not locked in any way.
        body.extend([0, 0x17, 0, 0, 0, 2, 0, 0, 0]);
        body.extend(size.to_be_bytes());
        body.extend([0; 20]);
        command(0xcc, &body)
    }

    /// Without an owner, a TPM 1.2 takes 64 of these in its life.
    pub fn nv_write(index: u32, data: &[u8]) -> Vec<u8> {
        let size = u32::try_from(data.len()).unwrap();
        command(0xcd, &[&index.to_be_bytes()[..], &[0; 4], &size.to_be_bytes(), data].concat())
    }

    pub fn nv_read(index: u32, size: u32) -> Vec<u8> {
        command(0xcf, &[&index.to_be_bytes()[..], &[0; 4], &size.to_be_bytes()].concat())
    }

    /// The data of a response to [`nv_read`].
    pub fn nv_data(response: &[u8]) -> Vec<u8> {
        assert_eq!(super::code_of(response), super::RC_SUCCESS);
        response[14..].to_vec()
    }

    /// `TSC_PhysicalPresence(PRESENT)`.
    pub fn assert_physical_presence() -> Vec<u8> {
        command(0x4000_000a, &[0, 0x08])
    }

    pub fn force_clear() -> Vec<u8> {
        command(0x5d, &[])
    }
}
