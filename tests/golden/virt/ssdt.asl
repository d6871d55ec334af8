// The source form of ssdt.aml, written by hand. A test holds that it compiles to the bytes that src/acpi/ makes.
DefinitionBlock ("", "SSDT", 2, "VFUTPM", "TPMTIS", 2)
{
    External (\_SB.PCI0, DeviceObj)
    External (\_SB.PCI0.S28, DeviceObj)

    Scope (\_SB.PCI0.S28)
    {
        OperationRegion (CFGS, PCI_Config, Zero, 0x40)
        Field (CFGS, DWordAcc, NoLock, Preserve)
        {
            VDID, 32,
            Offset (0x10),
            BAR0, 32
        }
        Field (CFGS, WordAcc, NoLock, Preserve)
        {
            Offset (0x04),
            CMDR, 16
        }

        Device (TPM)
        {
            Name (_HID, EisaId ("PNP0C31"))
            Name (_STR, Unicode ("TPM 2.0 Device"))
            Name (_UID, One)

            Method (_STA, 0, NotSerialized)
            {
                ASKD = One
                If (VDID == 0x54507666)
                {
                    If (BAR0 & 0xFFFFFFF0)
                    {
                        Return (0x0F)
                    }
                }
                Return (Zero)
            }

            Method (_CRS, 0, Serialized)
            {
                Name (RBUF, ResourceTemplate ()
                {
                    Memory32Fixed (ReadWrite, 0, 0x5000, REG0)
                })
                CreateDWordField (RBUF, REG0._BAS, BASE)
                If (ASKD)
                {
                    BASE = BAR0 & 0xFFFFFFF0
                }
                If (BASE)
                {
                    CMDR |= 0x02
                }
                Return (RBUF)
            }

            Name (_DEP, Package ()
            {
                \_SB.PCI0
            })
            Name (ASKD, Zero)
        }
    }
}
