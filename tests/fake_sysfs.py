"""A folder that looks like /sys as far as devices, their drivers and network interfaces go."""

from __future__ import annotations

from pathlib import Path

# Read on QEMU's machines, and of a real Mellanox, an Intel wireless and an USB Ethernet adapter.
E1000 = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00"
MLX5 = "pci:v000015B3d00001017sv000015B3sd00000023bc02sc00i00"
MLX5_IB = "pci:v000015B3d00001017sv000015B3sd00000023bc02sc07i00"
WIFI = "pci:v00008086d00002723sv00008086sd00000084bc02sc80i00"
AHCI = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"
XHCI = "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30"
BRIDGE = "pci:v00008086d00001237sv00001AF4sd00001100bc06sc00i00"
GPU = "pci:v000010DEd000020B0sv000010DEsd00001450bc03sc02i00"
VIRTIO_PCI = "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00"
VIRTIO_NET = "virtio:d00000001v00001AF4"
VIRTIO_BLK = "virtio:d00000002v00001AF4"
USB_ECM = "usb:v0525pA4A2d0515dc02dsc00dp00ic02isc06ip00in00"
USB_VENDOR = "usb:v0BDAp8152d2000dc00dsc00dp00icFFiscFFip00in00"
USB_STICK = "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00"


class Sysfs:
    """Devices are made with the folders and links the kernel would make; ``root`` stands for /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "devices").mkdir(parents=True)
        (root / "class/net").mkdir(parents=True)

    def device(self, path: str, modalias: str, driver: str = "", module: str = "", builtin: bool = False) -> Path:
        """A device at devices/``path``; a ``builtin`` module has a folder of its own, but no state."""
        folder = self.root / "devices" / path
        folder.mkdir(parents=True)
        (folder / "modalias").write_text(modalias + "\n")
        word = modalias.partition(":")[0]
        bus = self.root / "bus" / (word if word.isalpha() else "platform") / "devices"
        bus.mkdir(parents=True, exist_ok=True)
        (bus / folder.name).symlink_to(folder)
        if driver:
            at = self.root / "drivers" / driver
            at.mkdir(parents=True, exist_ok=True)
            (folder / "driver").symlink_to(at)
            if module and not (at / "module").exists():
                loaded = self.root / "module" / module
                loaded.mkdir(parents=True)
                if not builtin:
                    (loaded / "initstate").write_text("live\n")
                (at / "module").symlink_to(loaded)
        return folder

    def nic(self, name: str, mac: str, device: Path) -> None:
        """A network interface of a device."""
        folder = device / "net" / name
        folder.mkdir(parents=True)
        (folder / "address").write_text(mac.lower() + "\n")
        (folder / "type").write_text("1\n")
        (folder / "device").symlink_to(device)
        (self.root / "class/net" / name).symlink_to(folder)
