//! Making a TPM 2.0, and making another one of it.
//!
//! All of it needs platform authorization, which is empty after each start: nobody else has used this TPM since.

use std::collections::BTreeMap;

use openssl::pkey::{PKey, Public};

use super::certificate::{Specification, TpmIdentity};
use super::template::Template;
use super::wire::{Command, Reader, Transport};
use super::{ManufactureError, Order, banks};

pub(super) const TPM_ST_NO_SESSIONS: u16 = 0x8001;
pub(super) const TPM_ST_SESSIONS: u16 = 0x8002;
pub(super) const TPM_RH_PLATFORM: u32 = 0x4000_000c;
/// `TPMS_AUTH_COMMAND` with an empty password: size 9, `TPM_RS_PW`, no nonce, no attributes, no password.
pub(super) const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0];

const TPM_CC_EVICT_CONTROL: u32 = 0x120;
const TPM_CC_NV_UNDEFINE_SPACE: u32 = 0x122;
const TPM_CC_CHANGE_EPS: u32 = 0x124;
const TPM_CC_CHANGE_PPS: u32 = 0x125;
const TPM_CC_CLEAR: u32 = 0x126;
const TPM_CC_CLEAR_CONTROL: u32 = 0x127;
const TPM_CC_NV_DEFINE_SPACE: u32 = 0x12a;
const TPM_CC_CREATE_PRIMARY: u32 = 0x131;
const TPM_CC_NV_WRITE: u32 = 0x137;
const TPM_CC_NV_WRITE_LOCK: u32 = 0x138;
const TPM_CC_STARTUP: u32 = 0x144;
const TPM_CC_SHUTDOWN: u32 = 0x145;
const TPM_CC_FLUSH_CONTEXT: u32 = 0x165;
const TPM_CC_READ_PUBLIC: u32 = 0x173;
const TPM_CC_GET_CAPABILITY: u32 = 0x17a;

const TPM_RH_OWNER: u32 = 0x4000_0001;
const TPM_RH_ENDORSEMENT: u32 = 0x4000_000b;
const TPM_SU_CLEAR: u16 = 0;
const NO: u8 = 0;
const TPM_ALG_SHA256: u16 = 0x000b;

const TPM_CAP_HANDLES: u32 = 1;
const TPM_CAP_TPM_PROPERTIES: u32 = 6;
const TPM_PT_FIXED: u32 = 0x100;
const TPM_PT_LEVEL: u32 = 0x101;
const TPM_PT_REVISION: u32 = 0x102;
const TPM_PT_MANUFACTURER: u32 = 0x105;
const TPM_PT_FIRMWARE_VERSION_1: u32 = 0x10b;
const TPM_PT_NV_INDEX_MAX: u32 = 0x117;
const TPM_PT_NV_BUFFER_MAX: u32 = 0x12c;
/// Most entries that are asked for of a list, and taken.
const MAX_LIST: u32 = 254;

const NV_INDICES: u32 = 0x0100_0000;
const PERSISTENT_OBJECTS: u32 = 0x8100_0000;
/// From here on, persistent objects are the platform's.
const PLATFORM_OBJECTS: u32 = 0x8180_0000;
/// What the registry of reserved TPM handles gives to EK and platform certificates and what belongs to them.
const CERTIFICATE_INDICES: std::ops::RangeInclusive<u32> = 0x01c0_0000..=0x01c0_ffff;
/// The platform certificate's index.
pub const PLATFORM_CERTIFICATE: u32 = 0x01c0_8000;

/// `TPMA_NV`: PPWRITE, WRITEDEFINE, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE. Everybody may read it, only the
/// platform can write it, and nobody once it is locked; it outlives TPM2_Clear.
const CERTIFICATE_ATTRIBUTES: u32 = 0x1 | 0x2000 | 0x1_0000 | 0x2_0000 | 0x4_0000 | 0x200_0000 | 0x4000_0000;

/// Makes a new TPM what it is to be, and shuts it down.
pub(super) fn manufacture(tpm: &mut dyn Transport, order: &Order<'_>) -> Result<(), ManufactureError> {
    startup(tpm)?;
    set_banks(tpm, order)?;
    endorse(tpm, order)?;
    shutdown(tpm)
}

/// Makes another TPM of this one, and shuts it down: new seeds, so that all keys are others; no authorization values, no
/// persistent objects, no NV indices but those of a platform's firmware. PCR banks and profile stay.
pub(super) fn renew(tpm: &mut dyn Transport, order: &Order<'_>) -> Result<(), ManufactureError> {
    startup(tpm)?;
    // An owner may have forbidden TPM2_Clear.
    authorized("TPM2_ClearControl", TPM_CC_CLEAR_CONTROL, &[TPM_RH_PLATFORM]).u8(NO).run(tpm)?;
    for (name, code) in
        [("TPM2_Clear", TPM_CC_CLEAR), ("TPM2_ChangeEPS", TPM_CC_CHANGE_EPS), ("TPM2_ChangePPS", TPM_CC_CHANGE_PPS)]
    {
        authorized(name, code, &[TPM_RH_PLATFORM]).run(tpm)?;
    }
    // All that was the old TPM's should be gone by now. Not every TPM sees to it.
    for handle in handles(tpm, PERSISTENT_OBJECTS)? {
        let hierarchy = if handle < PLATFORM_OBJECTS { TPM_RH_OWNER } else { TPM_RH_PLATFORM };
        authorized("TPM2_EvictControl", TPM_CC_EVICT_CONTROL, &[hierarchy, handle]).u32(handle).run(tpm)?;
    }
    for index in handles(tpm, NV_INDICES)? {
        let undefine = |hierarchy| authorized("TPM2_NV_UndefineSpace", TPM_CC_NV_UNDEFINE_SPACE, &[hierarchy, index]);
        if CERTIFICATE_INDICES.contains(&index) {
            undefine(TPM_RH_PLATFORM).run(tpm)?;
        } else if undefine(TPM_RH_OWNER).try_run(tpm)?.is_err() {
            log::warn!("the copy keeps the NV index {index:#010x}, which the platform's firmware has made");
        }
    }
    set_banks(tpm, order)?;
    endorse(tpm, order)?;
    shutdown(tpm)
}

fn startup(tpm: &mut dyn Transport) -> Result<(), ManufactureError> {
    plain("TPM2_Startup", TPM_CC_STARTUP).u16(TPM_SU_CLEAR).run(tpm).map(drop)
}

fn shutdown(tpm: &mut dyn Transport) -> Result<(), ManufactureError> {
    plain("TPM2_Shutdown", TPM_CC_SHUTDOWN).u16(TPM_SU_CLEAR).run(tpm).map(drop)
}

fn set_banks(tpm: &mut dyn Transport, order: &Order<'_>) -> Result<(), ManufactureError> {
    let Some(wanted) = order.pcr_banks else { return Ok(()) };
    if banks::allocate(tpm, wanted)? {
        // The new banks come with the next start.
        shutdown(tpm)?;
        tpm.reset()?;
        startup(tpm)?;
    }
    banks::check(tpm, wanted)
}

/// Endorsement keys and their certificates.
fn endorse(tpm: &mut dyn Transport, order: &Order<'_>) -> Result<(), ManufactureError> {
    let properties = Properties::of(tpm)?;
    let identity = properties.identity();
    let mut first = None;
    for template in Template::ALL {
        let key = create_endorsement_key(tpm, template)?;
        if let Some(certifier) = order.certifier {
            let certificate = certifier.endorsement(&key, &identity, template.name())?;
            write_certificate(tpm, &properties, template.name(), template.certificate_index(), &certificate)?;
        }
        first.get_or_insert(key);
    }
    if let (Some(certifier), Some(key)) = (order.certifier, first) {
        let certificate = certifier.platform(&key)?;
        write_certificate(tpm, &properties, "platform", PLATFORM_CERTIFICATE, &certificate)?;
    }
    Ok(())
}

/// Creates the key, makes it persistent, and reads back what is then there.
fn create_endorsement_key(tpm: &mut dyn Transport, template: Template) -> Result<PKey<Public>, ManufactureError> {
    let create = authorized("TPM2_CreatePrimary", TPM_CC_CREATE_PRIMARY, &[TPM_RH_ENDORSEMENT])
        // No authorization value, no data; no outside information, no PCRs.
        .sized(&[0; 4])
        .sized(&template.public_area())
        .u16(0)
        .u32(0);
    let transient = create.run(tpm)?.read(|reader| reader.array().map(u32::from_be_bytes))?;
    authorized("TPM2_EvictControl", TPM_CC_EVICT_CONTROL, &[TPM_RH_OWNER, transient])
        .u32(template.handle())
        .run(tpm)?;
    plain("TPM2_FlushContext", TPM_CC_FLUSH_CONTEXT).u32(transient).run(tpm)?;
    let public = plain("TPM2_ReadPublic", TPM_CC_READ_PUBLIC).u32(template.handle()).run(tpm)?;
    let public = public.read(|reader| reader.sized().map(<[u8]>::to_vec))?;
    template.key_in(&public)?.ok_or(ManufactureError::OtherKey)
}

fn write_certificate(
    tpm: &mut dyn Transport,
    properties: &Properties,
    what: &'static str,
    index: u32,
    data: &[u8],
) -> Result<(), ManufactureError> {
    let limit = properties.nv_index_max();
    let size = u16::try_from(data.len()).ok().filter(|size| usize::from(*size) <= limit);
    let size = size.ok_or(ManufactureError::CertificateSize { what, size: data.len(), limit })?;
    // TPMS_NV_PUBLIC without a policy.
    let public = [
        &index.to_be_bytes()[..],
        &TPM_ALG_SHA256.to_be_bytes(),
        &CERTIFICATE_ATTRIBUTES.to_be_bytes(),
        &[0, 0],
        &size.to_be_bytes(),
    ]
    .concat();
    authorized("TPM2_NV_DefineSpace", TPM_CC_NV_DEFINE_SPACE, &[TPM_RH_PLATFORM])
        // No authorization value: everybody may read it.
        .u16(0)
        .sized(&public)
        .run(tpm)?;
    let on_index = |name, code| authorized(name, code, &[TPM_RH_PLATFORM, index]);
    let mut offset = 0_u16;
    for part in data.chunks(properties.nv_buffer_max()) {
        on_index("TPM2_NV_Write", TPM_CC_NV_WRITE).sized(part).u16(offset).run(tpm)?;
        offset = offset.saturating_add(u16::try_from(part.len()).unwrap_or(u16::MAX));
    }
    on_index("TPM2_NV_WriteLock", TPM_CC_NV_WRITE_LOCK).run(tpm).map(drop)
}

/// What does not change in the life of a TPM.
#[derive(Debug)]
struct Properties(BTreeMap<u32, u32>);

impl Properties {
    fn of(tpm: &mut dyn Transport) -> Result<Self, ManufactureError> {
        let response = capability(tpm, "TPM2_GetCapability(TPM_PROPERTIES)", TPM_CAP_TPM_PROPERTIES, TPM_PT_FIXED)?;
        let pairs = response
            .read(|reader| list(reader, TPM_CAP_TPM_PROPERTIES, |reader| Some((reader.u32()?, reader.u32()?))))?;
        Ok(Self(pairs.into_iter().collect()))
    }

    fn get(&self, property: u32) -> u32 {
        self.0.get(&property).copied().unwrap_or(0)
    }

    /// Bytes that an NV index holds.
    fn nv_index_max(&self) -> usize {
        usize::try_from(self.get(TPM_PT_NV_INDEX_MAX)).unwrap_or(0)
    }

    /// Bytes that one command reads or writes; any TPM takes a few hundred.
    fn nv_buffer_max(&self) -> usize {
        usize::try_from(self.get(TPM_PT_NV_BUFFER_MAX)).unwrap_or(0).clamp(256, 1024)
    }

    fn identity(&self) -> TpmIdentity {
        TpmIdentity {
            manufacturer: format!("id:{:08X}", self.get(TPM_PT_MANUFACTURER)),
            version: format!("id:{:08X}", self.get(TPM_PT_FIRMWARE_VERSION_1)),
            specification: Specification {
                family: "2.0",
                level: self.get(TPM_PT_LEVEL),
                revision: self.get(TPM_PT_REVISION),
            },
        }
    }
}

/// The handles of one kind that there are.
fn handles(tpm: &mut dyn Transport, kind: u32) -> Result<Vec<u32>, ManufactureError> {
    capability(tpm, "TPM2_GetCapability(HANDLES)", TPM_CAP_HANDLES, kind)?
        .read(|reader| list(reader, TPM_CAP_HANDLES, Reader::u32))
}

fn capability(
    tpm: &mut dyn Transport,
    name: &'static str,
    capability: u32,
    first: u32,
) -> Result<super::wire::Response, ManufactureError> {
    plain(name, TPM_CC_GET_CAPABILITY).u32(capability).u32(first).u32(MAX_LIST).run(tpm)
}

/// The entries of a `TPMS_CAPABILITY_DATA` that fits into one response.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    expected: u32,
    mut entry: impl FnMut(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let (_more, capability, count) = (reader.u8()?, reader.u32()?, reader.u32()?);
    if capability != expected || count > MAX_LIST {
        return None;
    }
    (0..count).map(|_| entry(reader)).collect()
}

fn plain(name: &'static str, code: u32) -> Command {
    Command::new(name, TPM_ST_NO_SESSIONS, code)
}

/// A command on handles of which the first is authorized by an empty password.
fn authorized(name: &'static str, code: u32, handles: &[u32]) -> Command {
    let command = Command::new(name, TPM_ST_SESSIONS, code);
    handles.iter().fold(command, |command, handle| command.u32(*handle)).bytes(&EMPTY_PASSWORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_can_be_read_by_all_and_written_by_the_platform_until_they_are_locked() {
        assert_eq!(CERTIFICATE_ATTRIBUTES, 0x4207_2001);
    }

    #[test]
    fn a_list_is_as_long_as_it_says_and_no_longer_than_asked_for() {
        let bytes = [0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(list(&mut Reader(&bytes), 1, Reader::u32), Some(vec![0x0102_0304, 0x0506_0708]));
        assert_eq!(list(&mut Reader(&bytes[..16]), 1, Reader::u32), None);
        assert_eq!(list(&mut Reader(&bytes), 6, Reader::u32), None);
        let endless = [0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(list(&mut Reader(&endless), 1, |_| Some(())), None);
    }

    #[test]
    fn the_identity_is_what_the_tpm_says_of_itself() {
        let properties = [(TPM_PT_MANUFACTURER, 0x4942_4d00), (TPM_PT_FIRMWARE_VERSION_1, 0x2019_1023)];
        let identity = Properties(properties.into()).identity();
        assert_eq!((identity.manufacturer.as_str(), identity.version.as_str()), ("id:49424D00", "id:20191023"));
    }
}
