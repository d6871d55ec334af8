// The source form of ssdt.aml, written by hand. A test holds that it compiles to the bytes that src/acpi/ makes.
DefinitionBlock ("", "SSDT", 2, "VFUTPM", "TPMTIS", 1)
{
    External (\_SB.PCI0.S28, DeviceObj)
    External (\PICF, IntObj)

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
            Name (_HID, "MSFT0101")
            Name (_STR, Unicode ("TPM 2.0 Device"))
            Name (_UID, One)

            Method (_STA, 0, NotSerialized)
            {
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
                BASE = BAR0 & 0xFFFFFFF0
                If (BASE)
                {
                    CMDR |= 0x02
                    PTCH ()
                    If (CondRefOf (\PICF))
                    {
                        If (\PICF)
                        {
                            Name (IBUF, ResourceTemplate ()
                            {
                                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 21 }
                            })
                            Return (ConcatenateResTemplate (RBUF, IBUF))
                        }
                    }
                }
                Return (RBUF)
            }

            DataTableRegion (TREG, "TPM2", "", "")
            Field (TREG, ByteAcc, NoLock, Preserve)
            {
                Offset (0x09),
                CKSM, 8,
                Offset (0x40),
                LAML, 32,
                LASA, 32
            }

            Method (BSUM, 1, NotSerialized)
            {
                Return ((Arg0 + (Arg0 >> 8)) + ((Arg0 >> 16) + (Arg0 >> 24)))
            }

            Method (PTCH, 0, Serialized)
            {
                If (_STA ())
                {
                    Local0 = 0x00010000
                    CKSM = (CKSM + BSUM (LAML)) - BSUM (Local0)
                    LAML = Local0
                    Local0 = (BAR0 & 0xFFFFFFF0) | 0x00010000
                    CKSM = (CKSM + BSUM (LASA)) - BSUM (Local0)
                    LASA = Local0
                }
            }

            Method (_INI, 0, NotSerialized)
            {
                PTCH ()
            }
        }
    }
}
