//! The registers of a locality's page and their bits, by the names of TCG PC Client TIS 1.3 and PTP 1.05 (FIFO
//! interface).

use bitflags::bitflags;

use crate::tpm::{Locality, TpmVersion};

/// A register of a locality's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// `TPM_ACCESS_x` (one byte).
    Access,
    /// `TPM_INT_ENABLE_x`.
    IntEnable,
    /// `TPM_INT_VECTOR_x` (one byte).
    IntVector,
    /// `TPM_INT_STATUS_x`.
    IntStatus,
    /// `TPM_INTF_CAPABILITY_x`.
    IntfCapability,
    /// `TPM_STS_x`.
    Sts,
    /// `TPM_DATA_FIFO_x`, and all of `TPM_XDATA_FIFO_x`, which is another door to the same FIFO.
    DataFifo,
    /// `TPM_HASH_DATA` on writes; `TPM_DATA_FIFO_4`, which has the same address, on reads.
    HashData,
    /// `TPM_INTERFACE_ID_x`.
    InterfaceId,
    /// `TPM_DID_VID_x`.
    DidVid,
    /// `TPM_RID_x` (one byte).
    Rid,
}

impl Register {
    /// Where `TPM_STS_x` is in the page.
    pub(super) const STS: u64 = 0x018;

    /// The register in the word at `offset` (a multiple of four, below the page's 4 KiB) of this locality's page.
    ///
    /// `TPM_HASH_END` (0x020) and `TPM_HASH_START` (0x028) of locality 4 can only be written, and those writes are
    /// dropped: they need no names.
    pub(super) fn at(locality: Locality, offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::Access,
            0x008 => Self::IntEnable,
            0x00c => Self::IntVector,
            0x010 => Self::IntStatus,
            0x014 => Self::IntfCapability,
            Self::STS => Self::Sts,
            0x024 if locality == Locality::FOUR => Self::HashData,
            0x024 | 0x080..=0x0bc => Self::DataFifo,
            0x030 => Self::InterfaceId,
            0xf00 => Self::DidVid,
            0xf04 => Self::Rid,
            _ => return None,
        })
    }
}

bitflags! {
    /// `TPM_ACCESS_x`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Access: u8 {
        /// `tpmRegValidSts`: the other bits are valid.
        const TPM_REG_VALID_STS = 1 << 7;
        /// `activeLocality`. Written: relinquish.
        const ACTIVE_LOCALITY = 1 << 5;
        /// `beenSeized`. Written: clear.
        const BEEN_SEIZED = 1 << 4;
        /// `Seize`, reads 0.
        const SEIZE = 1 << 3;
        /// `pendingRequest`: another locality waits.
        const PENDING_REQUEST = 1 << 2;
        /// `requestUse`.
        const REQUEST_USE = 1 << 1;
        /// `tpmEstablishment`: 1 when *not* established.
        const TPM_ESTABLISHMENT = 1 << 0;
    }

    /// `TPM_STS_x` without its `burstCount` field (bits 23:8).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Sts: u32 {
        /// `tpmFamily` (27:26) = 01: TPM 2.0. Absent, so 00, with TPM 1.2.
        const TPM_FAMILY_2_0 = 1 << 26;
        /// `resetEstablishmentBit`, TPM 2.0 only, reads 0.
        const RESET_ESTABLISHMENT_BIT = 1 << 25;
        /// `commandCancel`, TPM 2.0 only, reads 0.
        const COMMAND_CANCEL = 1 << 24;
        /// `stsValid`: `dataAvail` and `Expect` are valid.
        const STS_VALID = 1 << 7;
        /// `commandReady`. Written: get ready, abort what is there.
        const COMMAND_READY = 1 << 6;
        /// `tpmGo`, reads 0.
        const TPM_GO = 1 << 5;
        /// `dataAvail`.
        const DATA_AVAIL = 1 << 4;
        /// `Expect`.
        const EXPECT = 1 << 3;
        /// `responseRetry`, reads 0.
        const RESPONSE_RETRY = 1 << 1;
    }

    /// The interrupt conditions: enable bits of `TPM_INT_ENABLE_x`, status bits of `TPM_INT_STATUS_x` and support
    /// bits of `TPM_INTF_CAPABILITY_x` lie alike.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Interrupt: u32 {
        /// `commandReadyInt…`
        const COMMAND_READY = 1 << 7;
        /// `localityChangeInt…`
        const LOCALITY_CHANGE = 1 << 2;
        /// `stsValidInt…`
        const STS_VALID = 1 << 1;
        /// `dataAvailInt…`
        const DATA_AVAIL = 1 << 0;
    }

    /// What `TPM_INT_ENABLE_x` holds besides an enable bit for each [`Interrupt`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct IntEnable: u32 {
        /// `globalIntEnable`.
        const GLOBAL = 1 << 31;
        /// `typePolarity` (4:3) = 01: low level, the state after reset.
        const LOW_LEVEL = 0b01 << 3;
        /// All of `typePolarity`.
        const TYPE_POLARITY = 0b11 << 3;
        /// The interrupts' enable bits.
        const INTERRUPTS = Interrupt::all().bits();
    }

    /// `TPM_INTF_CAPABILITY_x`. `BurstCountStatic` (8) is 0: the burst count is dynamic.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct IntfCapability: u32 {
        /// `InterfaceVersion` (30:28) = 2: TIS 1.3.
        const INTERFACE_TIS_1_3 = 2 << 28;
        /// `InterfaceVersion` (30:28) = 3: the FIFO interface of PTP. edk2 looks for it.
        const INTERFACE_PTP = 3 << 28;
        /// `DataTransferSizeSupport` (10:9) = 3: up to 64 bytes.
        const TRANSFER_64 = 3 << 9;
        /// `InterruptLevelLow`. Mandatory.
        const INTERRUPT_LEVEL_LOW = 1 << 4;
        /// The supported interrupts.
        const INTERRUPTS = Interrupt::all().bits();
    }

    /// `TPM_INTERFACE_ID_x` of PTP. `InterfaceType`, `InterfaceVersion` (7:0) and `InterfaceSelector` (18:17) are 0:
    /// FIFO.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct InterfaceId: u32 {
        /// `IntfSelLock`: the selector is locked until reset.
        const INTF_SEL_LOCK = 1 << 19;
        /// `CapFIFO`. edk2 and SeaBIOS look for it.
        const CAP_FIFO = 1 << 13;
        /// `CapLocality`: five localities.
        const CAP_LOCALITY = 1 << 8;
    }
}

impl Sts {
    /// The bits with which software commands a TPM of this version.
    pub(super) fn commands(version: TpmVersion) -> Self {
        let both = Self::COMMAND_READY | Self::TPM_GO | Self::RESPONSE_RETRY;
        match version {
            TpmVersion::V1_2 => both,
            TpmVersion::V2_0 => both | Self::COMMAND_CANCEL | Self::RESET_ESTABLISHMENT_BIT,
        }
    }

    /// The family bits, which a TPM 1.2 doesn't have.
    pub(super) fn family(version: TpmVersion) -> Self {
        match version {
            TpmVersion::V1_2 => Self::empty(),
            TpmVersion::V2_0 => Self::TPM_FAMILY_2_0,
        }
    }
}

impl Interrupt {
    /// The interrupts for status bits that have become 1.
    pub(super) fn of_status(risen: Sts) -> Self {
        let mut interrupts = Self::empty();
        interrupts.set(Self::COMMAND_READY, risen.contains(Sts::COMMAND_READY));
        interrupts.set(Self::STS_VALID, risen.contains(Sts::STS_VALID));
        interrupts.set(Self::DATA_AVAIL, risen.contains(Sts::DATA_AVAIL));
        interrupts
    }
}

impl IntfCapability {
    /// What a TPM of this version can do.
    ///
    /// The interrupt bits describe these registers, which have them, whether or not the platform routes the
    /// interrupt: `_CRS` says that. Low level is mandatory, and guests know the value from QEMU.
    pub(super) fn of(version: TpmVersion) -> Self {
        let interface = match version {
            TpmVersion::V1_2 => Self::INTERFACE_TIS_1_3,
            TpmVersion::V2_0 => Self::INTERFACE_PTP,
        };
        interface | Self::TRANSFER_64 | Self::INTERRUPT_LEVEL_LOW | Self::INTERRUPTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_fifos_fill_their_ranges_and_no_more() {
        let at = |offset| Register::at(Locality::ZERO, offset);
        assert_eq!(at(0x20), None);
        assert_eq!(at(0x24), Some(Register::DataFifo));
        assert_eq!(at(0x28), None);
        assert_eq!(at(0x7c), None);
        assert_eq!(at(0x80), Some(Register::DataFifo));
        assert_eq!(at(0xbc), Some(Register::DataFifo));
        assert_eq!(at(0xc0), None);
    }

    #[test]
    fn only_tpm_2_0_has_cancel_establishment_reset_and_family() {
        assert_eq!(Sts::commands(TpmVersion::V1_2).bits(), 0x62);
        assert_eq!(Sts::commands(TpmVersion::V2_0).bits(), 0x0300_0062);
        assert_eq!(Sts::family(TpmVersion::V1_2).bits(), 0);
        assert_eq!(Sts::family(TpmVersion::V2_0).bits(), 0x0400_0000);
    }
}
