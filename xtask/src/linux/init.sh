#!/bin/busybox sh
# The guest's only process: works through the remapping unit, and tells what it saw in lines that
# start with `@guest `, one JSON object each. What to do comes in the environment, from the kernel's
# command line: PROOF_MIB, PROOF_READS, PROOF_FAULT (an address), PROOF_INTERRUPTS, PROOF_TRESPASS
# (an address of the hypervisor's, which ends the run).
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
echo 1 >/proc/sys/kernel/printk
tell() { echo "@guest {$1}"; }
uptime() { $b cut -d' ' -f1 /proc/uptime; }
tell "\"init_seconds\":$(uptime)"
if [ -n "$PROOF_TRESPASS" ]; then
    $b devmem "$PROOF_TRESPASS" 32
    tell '"error":"the hypervisor can be read"'
fi

for module in /modules/*; do
    $b insmod "$module" || tell "\"error\":\"insmod $module\""
done
disk=/dev/nvme0n1
tries=0
while [ ! -b $disk ] && [ $tries -lt 200 ]; do
    $b usleep 50000
    tries=$((tries + 1))
done
[ -b $disk ] || tell '"error":"no NVMe disk"'

# The first half of the disk is read, copied onto the second, and that is read again.
sum() { $b dd if=$disk bs=1M skip="$1" count="$PROOF_MIB" iflag=direct 2>/dev/null | $b sha256sum | $b cut -d' ' -f1; }
tell "\"read_sum\":\"$(sum 0)\""
$b dd if=$disk of=$disk bs=1M count="$PROOF_MIB" seek="$PROOF_MIB" iflag=direct oflag=direct conv=fsync,notrunc 2>/dev/null
tell "\"written_sum\":\"$(sum "$PROOF_MIB")\""
start=$(uptime)
$b dd if=$disk of=/dev/null bs=4096 count="$PROOF_READS" iflag=direct 2>/dev/null
tell "\"reads\":$PROOF_READS,\"reads_start\":$start,\"reads_end\":$(uptime)"

# The address of the first device with these ids.
device() {
    for d in /sys/bus/pci/devices/*; do
        if [ "$($b cat "$d/vendor") $($b cat "$d/device")" = "$1" ]; then
            echo "$d"
            return
        fi
    done
}
# Little-endian byte $2 of the number $1.
byte() { $b printf "\\$($b printf %o $(($1 >> (8 * $2) & 255)))"; }
config_write32() { # device offset value
    { byte "$3" 0; byte "$3" 1; byte "$3" 2; byte "$3" 3; } |
        $b dd of="$1/config" bs=4 count=1 seek=$(($2 / 4)) iflag=fullblock conv=notrunc 2>/dev/null
}
config_read32() { # device offset
    $b dd if="$1/config" bs=4 count=1 skip=$(($2 / 4)) 2>/dev/null | $b hexdump -v -e '1/4 "0x%08x"'
}

edu=$(device "0x1234 0x11e8")
if [ -n "$edu" ]; then
    echo 1 >"$edu/enable"
    registers=$($b head -n 1 "$edu/resource" | $b cut -d' ' -f1)

    # Registers over the unit's register page, through the port and through mapped configuration space.
    before=$(config_read32 "$edu" 16)
    config_write32 "$edu" 16 $((0xfed90000))
    tell "\"bar_by_port\":\"$before $(config_read32 "$edu" 16)\""
    address=$(echo "${edu##*/}" | $b sed 's/.*:\(..\):\(..\)\.\(.\)/0x\1 0x\2 \3/')
    set -- $address
    place=$((0xb0000000 + ($1 << 20) + ($2 << 15) + ($3 << 12) + 16))
    $b devmem $place 32 $((0xfed90000))
    tell "\"bar_by_memory\":\"$before $(config_read32 "$edu" 16)\""

    if [ -n "$PROOF_FAULT" ]; then
        # Bus master on; then a read and a write of an address that the device has no right to.
        config_write32 "$edu" 4 $(($(config_read32 "$edu" 4) & 0xffff | 6))
        dma() { # source destination command
            $b devmem $((registers + 0x80)) 64 "$1"
            $b devmem $((registers + 0x88)) 64 "$2"
            $b devmem $((registers + 0x90)) 64 4
            $b devmem $((registers + 0x98)) 64 "$3"
            tries=0
            while [ $(($($b devmem $((registers + 0x98)) 64) & 1)) -ne 0 ] && [ $tries -lt 100 ]; do
                $b usleep 10000
                tries=$((tries + 1))
            done
        }
        dma "$PROOF_FAULT" 0x40000 1
        $b usleep 50000
        dma 0x40000 "$PROOF_FAULT" 3
        $b usleep 50000
        $b dmesg | $b grep -i 'request device' | while read -r line; do
            tell "\"fault\":\"$(echo "$line" | $b tr -d '"\\')\""
        done
    fi
fi

# Messages that would take the processor out of the guest: an INIT and a start-up message to itself,
# an I/O APIC's unused pin set to INIT. They go nowhere.
if [ -n "$PROOF_INTERRUPTS" ]; then
    for command in 0x44500 0x44608; do
        $b devmem 0xfee00300 32 $command
    done
    $b devmem 0xfec00000 32 0x2e
    $b devmem 0xfec00010 32 0x10500
    tell '"interrupts":true'
fi
if $b dmesg | $b grep -q 'Virtualization Technology for Directed I/O'; then
    tell '"unit":true'
fi
if $b dmesg | $b grep -q 'Enabled IRQ remapping'; then
    tell '"interrupt_remapping":true'
fi
tell "\"done_seconds\":$(uptime)"
$b poweroff -f
