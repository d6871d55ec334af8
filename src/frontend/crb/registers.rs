//! The registers of a locality's page and their bits, by the names of PTP 1.05 (CRB interface). Those from
//! [`CTRL_REQ`] on are also the control area of a CRB with ACPI start.

use bitflags::bitflags;

/// `TPM_CRB_CTRL_REQ_x`, the first word of the control area.
pub(super) const CTRL_REQ: u32 = 0x40;
/// `TPM_CRB_CTRL_CANCEL_x`.
pub(super) const CTRL_CANCEL: u32 = 0x48;
/// `TPM_CRB_CTRL_START_x`.
pub(super) const CTRL_START: u32 = 0x4c;

/// Bit 0 of `TPM_CRB_CTRL_START_x`: run the command; reads 1 while it runs.
pub(super) const START: u32 = 1 << 0;
/// Bit 0 of `TPM_CRB_CTRL_CANCEL_x`: end the command soon.
pub(super) const CANCEL: u32 = 1 << 0;

/// A register of a locality's page, or a half of one that has 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// `TPM_LOC_STATE_x`.
    LocState,
    /// `TPM_LOC_CTRL_x`.
    LocCtrl,
    /// `TPM_LOC_STS_x`.
    LocSts,
    /// `TPM_CRB_INTF_ID_x` (31:0).
    IntfId,
    /// `TPM_CRB_INTF_ID_x` (63:32): vendor and device.
    IntfIdHigh,
    /// `TPM_CRB_CTRL_EXT_x` (64 bits), reserved.
    CtrlExt,
    /// `TPM_CRB_CTRL_REQ_x`.
    CtrlReq,
    /// `TPM_CRB_CTRL_STS_x`.
    CtrlSts,
    /// `TPM_CRB_CTRL_CANCEL_x`.
    CtrlCancel,
    /// `TPM_CRB_CTRL_START_x`.
    CtrlStart,
    /// `TPM_CRB_INT_ENABLE_x`.
    IntEnable,
    /// `TPM_CRB_INT_STS_x`.
    IntSts,
    /// `TPM_CRB_CTRL_CMD_SIZE_x` and `TPM_CRB_CTRL_RSP_SIZE_x`: there is one buffer for both.
    BufferSize,
    /// `TPM_CRB_CTRL_CMD_LADDR_x`, and `TPM_CRB_CTRL_RSP_ADDR_x` (31:0).
    BufferAddress,
    /// `TPM_CRB_CTRL_CMD_HADDR_x`, and `TPM_CRB_CTRL_RSP_ADDR_x` (63:32).
    BufferAddressHigh,
}

impl Register {
    /// The register in the word at `offset` (a multiple of four) of a locality's page.
    pub(super) fn at(offset: u64) -> Option<Self> {
        Some(match u32::try_from(offset).ok()? {
            0x00 => Self::LocState,
            0x08 => Self::LocCtrl,
            0x0c => Self::LocSts,
            0x30 => Self::IntfId,
            0x34 => Self::IntfIdHigh,
            0x38 | 0x3c => Self::CtrlExt,
            CTRL_REQ => Self::CtrlReq,
            0x44 => Self::CtrlSts,
            CTRL_CANCEL => Self::CtrlCancel,
            CTRL_START => Self::CtrlStart,
            0x50 => Self::IntEnable,
            0x54 => Self::IntSts,
            0x58 | 0x64 => Self::BufferSize,
            0x5c | 0x68 => Self::BufferAddress,
            0x60 | 0x6c => Self::BufferAddressHigh,
            _ => return None,
        })
    }
}

bitflags! {
    /// `TPM_LOC_STATE_x` without its `activeLocality` field (4:2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct LocState: u32 {
        /// `tpmRegValidSts`: the other bits are valid.
        const TPM_REG_VALID_STS = 1 << 7;
        /// `locAssigned`: a locality is active.
        const LOC_ASSIGNED = 1 << 1;
        /// `tpmEstablished`: 1 when *not* established, as in QEMU.
        const TPM_ESTABLISHED = 1 << 0;
    }

    /// `TPM_LOC_CTRL_x`, reads 0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct LocCtrl: u32 {
        /// `resetEstablishmentBit`.
        const RESET_ESTABLISHMENT_BIT = 1 << 3;
        /// `Seize`.
        const SEIZE = 1 << 2;
        /// `Relinquish`.
        const RELINQUISH = 1 << 1;
        /// `requestAccess`.
        const REQUEST_ACCESS = 1 << 0;
    }

    /// `TPM_LOC_STS_x`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct LocSts: u32 {
        /// `beenSeized`.
        const BEEN_SEIZED = 1 << 1;
        /// `Granted`: this locality is active.
        const GRANTED = 1 << 0;
    }

    /// `TPM_CRB_INTF_ID_x` without `RID` (31:24) and the upper half. `CapCRBIdleBypass` (9) is 0, as in QEMU, and
    /// `CapFIFO` (13): there is no other interface.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct IntfId: u32 {
        /// `IntfSelLock`: the selector is locked until reset.
        const INTF_SEL_LOCK = 1 << 19;
        /// `InterfaceSelector` (18:17) = 1: CRB.
        const INTERFACE_SELECTOR_CRB = 1 << 17;
        /// `CapCRB`.
        const CAP_CRB = 1 << 14;
        /// `CapDataXferSizeSupport` (12:11) = 3: up to 64 bytes.
        const DATA_XFER_64 = 3 << 11;
        /// `CapLocality`: five localities.
        const CAP_LOCALITY = 1 << 8;
        /// `InterfaceVersion` (7:4) = 1.
        const INTERFACE_VERSION_CRB = 1 << 4;
        /// `InterfaceType` (3:0) = 1: CRB.
        const INTERFACE_TYPE_CRB = 1 << 0;
    }

    /// `TPM_CRB_CTRL_REQ_x`. A bit reads 1 until the TPM has done what it asks for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct CtrlReq: u32 {
        /// `goIdle`.
        const GO_IDLE = 1 << 1;
        /// `cmdReady`.
        const CMD_READY = 1 << 0;
    }

    /// `TPM_CRB_CTRL_STS_x`. `tpmSts` (0), the fatal error, is always 0: a TPM that has failed says so in its response.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct CtrlSts: u32 {
        /// `tpmIdle`.
        const TPM_IDLE = 1 << 1;
    }

    /// `TPM_CRB_INT_ENABLE_x`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct IntEnable: u32 {
        /// `globalInterruptEnable`.
        const GLOBAL = 1 << 31;
        /// `localityChangeIntEnable`.
        const LOCALITY_CHANGE = 1 << 3;
        /// `establishmentClearIntEnable`.
        const ESTABLISHMENT_CLEAR = 1 << 2;
        /// `cmdReadyIntEnable`.
        const CMD_READY = 1 << 1;
        /// `startIntEnable`.
        const START = 1 << 0;
    }

    /// `TPM_CRB_INT_STS_x`: what has occurred. The enable bits lie alike.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct IntSts: u32 {
        /// `localityChangeInt`: this locality has got the TPM from another.
        const LOCALITY_CHANGE = 1 << 3;
        /// `establishmentClearInt`: `tpmEstablished` of `TPM_LOC_STATE_x` has become 0.
        const ESTABLISHMENT_CLEAR = 1 << 2;
        /// `cmdReadyInt`: a request to get ready is done.
        const CMD_READY = 1 << 1;
        /// `startInt`: `TPM_CRB_CTRL_START_x` has become 0, a command is done.
        const START = 1 << 0;
    }
}

impl IntfId {
    /// After power-on.
    pub(super) const POWER_ON: Self = Self::INTERFACE_SELECTOR_CRB
        .union(Self::CAP_CRB)
        .union(Self::DATA_XFER_64)
        .union(Self::CAP_LOCALITY)
        .union(Self::INTERFACE_VERSION_CRB)
        .union(Self::INTERFACE_TYPE_CRB);
}
