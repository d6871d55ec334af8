//! Making a TPM 1.2: endorsement key, certificates in the NV indices of the PC client, NV lock.

use openssl::bn::BigNum;
use openssl::pkey::{PKey, Public};
use openssl::rsa::Rsa;
use openssl::sha::sha1;

use super::certificate::{Specification, TpmIdentity};
use super::wire::{Command, Transport};
use super::{ManufactureError, Order};

const TPM_TAG_RQU_COMMAND: u16 = 0x00c1;
const TPM_ORD_GET_CAPABILITY: u32 = 0x65;
const TPM_ORD_PHYSICAL_ENABLE: u32 = 0x6f;
const TPM_ORD_PHYSICAL_SET_DEACTIVATED: u32 = 0x72;
const TPM_ORD_CREATE_ENDORSEMENT_KEY_PAIR: u32 = 0x78;
const TPM_ORD_STARTUP: u32 = 0x99;
const TPM_ORD_NV_DEFINE_SPACE: u32 = 0xcc;
const TPM_ORD_NV_WRITE_VALUE: u32 = 0xcd;
const TSC_ORD_PHYSICAL_PRESENCE: u32 = 0x4000_000a;

const TPM_ST_CLEAR: u16 = 1;
const TPM_PHYSICAL_PRESENCE_CMD_ENABLE: u16 = 0x20;
const TPM_PHYSICAL_PRESENCE_PRESENT: u16 = 0x08;
const TPM_CAP_VERSION_VAL: u32 = 0x1a;

/// `TPM_KEY_PARMS` of an endorsement key: RSA, OAEP with SHA-1 and MGF1, no signatures; 2048 bits, two primes, the
/// usual exponent.
const KEY_PARAMETERS: [u8; 24] = [0, 0, 0, 1, 0, 3, 0, 1, 0, 0, 0, 12, 0, 0, 8, 0, 0, 0, 0, 2, 0, 0, 0, 0];
const KEY_SIZE: usize = 256;

/// The NV index of the endorsement certificate, with the bit of the manufacturer.
pub const ENDORSEMENT_CERTIFICATE: u32 = 0x1000_f000;
/// The NV index of the platform certificate, likewise.
pub const PLATFORM_CERTIFICATE: u32 = 0x1000_f002;
/// Defining it locks the NV memory: from then on, authorization is required.
const TPM_NV_INDEX_LOCK: u32 = 0xffff_ffff;
const TPM_NV_PER_OWNERREAD: u32 = 0x0002_0000;
const TPM_NV_PER_OWNERWRITE: u32 = 0x0000_0002;
/// Most that is written by one command: it has to fit into the command buffer.
const WRITE_SIZE: usize = 1024;
/// Most that a certificate takes with what is in front of it: the NV memory of a TPM 1.2 is small.
const MAX_CERTIFICATE: usize = 2048;

/// Makes a new TPM what it is to be.
pub(super) fn manufacture(tpm: &mut dyn Transport, order: &Order<'_>) -> Result<(), ManufactureError> {
    start(tpm)?;
    command("TPM_PhysicalEnable", TPM_ORD_PHYSICAL_ENABLE).run(tpm)?;
    command("TPM_PhysicalSetDeactivated", TPM_ORD_PHYSICAL_SET_DEACTIVATED).u8(0).run(tpm)?;
    // What was just enabled is so after the next start.
    tpm.reset()?;
    start(tpm)?;

    let key = create_endorsement_key(tpm)?;
    if let Some(certifier) = order.certifier {
        let identity = identity(tpm)?;
        let certificate = certifier.endorsement(&key, &identity, "EK")?;
        write_certificate(tpm, "EK", ENDORSEMENT_CERTIFICATE, &certificate)?;
        let certificate = certifier.platform(&key)?;
        write_certificate(tpm, "platform", PLATFORM_CERTIFICATE, &certificate)?;
    }
    define(tpm, TPM_NV_INDEX_LOCK, 0, 0)
}

/// Startup, and the presence of somebody who may do all this.
fn start(tpm: &mut dyn Transport) -> Result<(), ManufactureError> {
    command("TPM_Startup", TPM_ORD_STARTUP).u16(TPM_ST_CLEAR).run(tpm)?;
    for presence in [TPM_PHYSICAL_PRESENCE_CMD_ENABLE, TPM_PHYSICAL_PRESENCE_PRESENT] {
        command("TSC_PhysicalPresence", TSC_ORD_PHYSICAL_PRESENCE).u16(presence).run(tpm)?;
    }
    Ok(())
}

fn create_endorsement_key(tpm: &mut dyn Transport) -> Result<PKey<Public>, ManufactureError> {
    const NAME: &str = "TPM_CreateEndorsementKeyPair";
    let mut nonce = [0; 20];
    openssl::rand::rand_bytes(&mut nonce)?;
    let response = command(NAME, TPM_ORD_CREATE_ENDORSEMENT_KEY_PAIR).bytes(&nonce).bytes(&KEY_PARAMETERS).run(tpm)?;
    let (parameters, modulus, checksum) = response.read(|reader| {
        let parameters: [u8; KEY_PARAMETERS.len()] = reader.array()?;
        let size = usize::try_from(reader.u32()?).ok().filter(|size| *size == KEY_SIZE)?;
        Some((parameters, reader.bytes(size)?.to_vec(), reader.array::<20>()?))
    })?;
    // The checksum is over the public key as it is in the response, and the nonce.
    let hashed = [&parameters[..], &[0, 0, 1, 0], &modulus, &nonce].concat();
    if parameters != KEY_PARAMETERS || checksum != sha1(&hashed) {
        return Err(ManufactureError::OtherKey);
    }
    let key = Rsa::from_public_components(BigNum::from_slice(&modulus)?, BigNum::from_u32(0x1_0001)?)?;
    Ok(PKey::from_rsa(key)?)
}

/// `TPM_CAP_VERSION_INFO` has the words for the certificate.
fn identity(tpm: &mut dyn Transport) -> Result<TpmIdentity, ManufactureError> {
    let response = command("TPM_GetCapability(VERSION_VAL)", TPM_ORD_GET_CAPABILITY).u32(TPM_CAP_VERSION_VAL).u32(0);
    response.run(tpm)?.read(|reader| {
        let (_size, _tag) = (reader.u32()?, reader.u16()?);
        let [_major, _minor, revision_major, revision_minor] = reader.array()?;
        let (level, _errata) = (reader.u16()?, reader.u8()?);
        Some(TpmIdentity {
            manufacturer: format!("id:{:08X}", reader.u32()?),
            version: format!("id:{:08X}", u32::from_be_bytes([0, 0, revision_major, revision_minor])),
            // The TPM does not say its revision; level 2 is revision 116, the last there was.
            specification: Specification { family: "1.2", level: level.into(), revision: 116 },
        })
    })
}

/// A certificate as the PC client specification stores it, `TCG_PCCLIENT_STORED_CERT`: tag, type (a full certificate),
/// length of what follows; `TCG_PCCLIENT_FULL_CERT`: tag, certificate.
fn stored_certificate(certificate: &[u8]) -> Vec<u8> {
    let size = u16::try_from(certificate.len().saturating_add(2)).unwrap_or(u16::MAX);
    [&[0x10, 0x01, 0x00][..], &size.to_be_bytes(), &[0x10, 0x02], certificate].concat()
}

fn write_certificate(
    tpm: &mut dyn Transport,
    what: &'static str,
    index: u32,
    certificate: &[u8],
) -> Result<(), ManufactureError> {
    let data = stored_certificate(certificate);
    let size = u32::try_from(data.len()).ok().filter(|_| data.len() <= MAX_CERTIFICATE);
    let size = size.ok_or(ManufactureError::CertificateSize { what, size: data.len(), limit: MAX_CERTIFICATE })?;
    define(tpm, index, TPM_NV_PER_OWNERREAD | TPM_NV_PER_OWNERWRITE, size)?;
    let mut offset = 0_u32;
    for part in data.chunks(WRITE_SIZE) {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        command("TPM_NV_WriteValue", TPM_ORD_NV_WRITE_VALUE).u32(index).u32(offset).u32(length).bytes(part).run(tpm)?;
        offset = offset.saturating_add(length);
    }
    Ok(())
}

/// TPM_NV_DefineSpace, while it needs no authorization.
fn define(tpm: &mut dyn Transport, index: u32, attributes: u32, size: u32) -> Result<(), ManufactureError> {
    // TPM_PCR_INFO_SHORT: no PCRs, all localities.
    let any_pcrs = [&[0, 3, 0, 0, 0, 0x1f][..], &[0; 20]].concat();
    command("TPM_NV_DefineSpace", TPM_ORD_NV_DEFINE_SPACE)
        // TPM_NV_DATA_PUBLIC
        .u16(0x18)
        .u32(index)
        .bytes(&any_pcrs)
        .bytes(&any_pcrs)
        // TPM_NV_ATTRIBUTES; bReadSTClear, bWriteSTClear, bWriteDefine
        .u16(0x17)
        .u32(attributes)
        .bytes(&[0; 3])
        .u32(size)
        // encAuth
        .bytes(&[0; 20])
        .run(tpm)
        .map(drop)
}

fn command(name: &'static str, ordinal: u32) -> Command {
    Command::new(name, TPM_TAG_RQU_COMMAND, ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_certificate_says_its_kind_and_length() {
        let stored = stored_certificate(&[0xaa; 300]);
        assert_eq!(stored[..7], [0x10, 0x01, 0, 0x01, 0x2e, 0x10, 0x02]);
        assert_eq!(stored.len(), 307);
    }
}
