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

            Name (PPI2, Package (0x02) { Zero, Zero })
            Name (PPI3, Package (0x03) { Zero, Zero, Zero })

            Method (PPIF, 3, Serialized)
            {
                If (_STA ())
                {
                    OperationRegion (PPIR, SystemMemory, (BAR0 & 0xFFFFFFF0) | 0x6000, 0x24)
                    Field (PPIR, DWordAcc, NoLock, Preserve)
                    {
                        SIGN, 32,
                        OPER, 32,
                        ARGU, 32,
                        SUBM, 32,
                        STND, 32,
                        PEND, 32,
                        PARG, 32,
                        LAST, 32,
                        RESP, 32
                    }
                    If (SIGN == 0x31495050)
                    {
                        If (Arg1 == Zero)
                        {
                            Return (Buffer () { 0xFF, 0x01 })
                        }
                        If (Arg1 == One)
                        {
                            Return ("1.3")
                        }
                        If (Arg1 == 0x02)
                        {
                            OPER = DerefOf (Arg2 [Zero])
                            ARGU = Zero
                            If (SizeOf (Arg2) > One)
                            {
                                ARGU = DerefOf (Arg2 [One])
                            }
                            SUBM = One
                            Return (SUBM)
                        }
                        If (Arg1 == 0x03)
                        {
                            If (Arg0 == One)
                            {
                                PPI2 [One] = PEND
                                Return (PPI2)
                            }
                            PPI3 [One] = PEND
                            PPI3 [0x02] = PARG
                            Return (PPI3)
                        }
                        If (Arg1 == 0x04)
                        {
                            Return (0x02)
                        }
                        If (Arg1 == 0x05)
                        {
                            PPI3 [One] = LAST
                            PPI3 [0x02] = RESP
                            Return (PPI3)
                        }
                        If (Arg1 == 0x06)
                        {
                            Return (0x03)
                        }
                        If (Arg1 == 0x07)
                        {
                            OPER = DerefOf (Arg2 [Zero])
                            ARGU = Zero
                            If (SizeOf (Arg2) > One)
                            {
                                ARGU = DerefOf (Arg2 [One])
                            }
                            SUBM = One
                            Return (SUBM)
                        }
                        If (Arg1 == 0x08)
                        {
                            OPER = DerefOf (Arg2 [Zero])
                            Return (STND)
                        }
                    }
                }
                Return (Buffer () { 0x00 })
            }

            Method (_DSM, 4, NotSerialized)
            {
                If (Arg0 == ToUUID ("3dddfaa6-361b-4eb4-a424-8d10089d1653"))
                {
                    Return (PPIF (Arg1, Arg2, Arg3))
                }
                Return (Buffer () { 0x00 })
            }
        }
    }
}
