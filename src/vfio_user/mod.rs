//! The vfio-user protocol: a server that gives one device at a time to one client at a time.

mod device;

pub use device::{Answer, Device, DeviceInfo, Irq, Region, RegionFlags, Ticket};
