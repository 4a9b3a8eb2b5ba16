//! What a guest is made of: kernels, QEMU and busybox, from Debian, in exactly these versions.
//!
//! Each lies in a folder of its own under `target/vm`, unpacked, and is downloaded once. The checksums are of the
//! packages' files. QEMU's libraries are whatever this machine's Debian has, as apt checks them.

use std::fs;
use std::path::{Path, PathBuf};

use super::userland;
use crate::debian::{self, Apt};
use crate::failure::Failure;
use crate::process::{self, step};

/// A package in one version.
#[derive(Clone, Copy)]
struct Pinned {
    name: &'static str,
    version: &'static str,
    sha256: &'static str,
}

/// What kind of machine is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    X86,
    /// With a processor of this name.
    Arm64(&'static str),
}

/// A kernel: with sched_ext and virtio's console built in, and those for x86-64 with ext4 and NVMe.
pub(crate) struct Kernel {
    /// What `--kernel` calls it.
    pub(crate) series: &'static str,
    pub(crate) machine: Machine,
    package: Pinned,
}

/// Where kernels of all series are; Debian 12's own 6.12 has no sched_ext.
const KERNEL_SUITE: &str = "trixie-backports";
pub(crate) const KERNELS: [Kernel; 3] = [
    Kernel {
        series: "6.16",
        machine: Machine::X86,
        package: Pinned {
            name: "linux-image-6.16.3+deb13-cloud-amd64",
            version: "6.16.3-1~bpo13+1",
            sha256: "40d706411f3ab9c7d80f72f63dd50c8c655d7c1363a38e27eb53bec0567e9f0f",
        },
    },
    Kernel {
        series: "6.18",
        machine: Machine::X86,
        package: Pinned {
            name: "linux-image-6.18.15+deb13-cloud-amd64",
            version: "6.18.15-1~bpo13+1",
            sha256: "5a507681ea8c978d02265a7fec2f02c9588fb48b54b7f71edc1059e86007f3ec",
        },
    },
    // Other builds have lost the descriptions (BTF) of some functions that a scheduler calls: 7.2.6 that of
    // `scx_bpf_pick_idle_cpu`, 7.2.9 and 7.2.12 that of `scx_bpf_kick_cpu` as well. 7.2.11 lacks only one that is optional.
    Kernel {
        series: "7.2",
        machine: Machine::X86,
        package: Pinned {
            name: "linux-binary-7.2.11+deb13-cloud-amd64",
            version: "7.2.11-1~bpo13+1",
            sha256: "f9d27364c318c5208501577193d025475958fb86b6d4ddf96d10d41895d26f89",
        },
    },
];

/// For arm64: pages of 4 KiB, with the processor of a Raspberry Pi 4, which has no atomic instructions but load and store
/// exclusive; pages of 16 KiB, with that of a Raspberry Pi 5, whose system has such pages.
pub(crate) const ARM64_KERNELS: [Kernel; 2] = [
    Kernel {
        series: "6.18-arm64",
        machine: Machine::Arm64("cortex-a72"),
        package: Pinned {
            name: "linux-image-6.18.15+deb13-cloud-arm64",
            version: "6.18.15-1~bpo13+1",
            sha256: "d8769e7a5cd50d504354c1bb13d92becb004178ed1195e575d5680e33cb84c30",
        },
    },
    Kernel {
        series: "6.18-arm64-16k",
        machine: Machine::Arm64("cortex-a76"),
        package: Pinned {
            name: "linux-image-6.18.15+deb13-arm64-16k",
            version: "6.18.15-1~bpo13+1",
            sha256: "148541a2e0222363fd2e5fd680efb2d7272d2c956f8b9d9f35b03f1b281e0a54",
        },
    },
];

/// Debian 12's own QEMU (7.2) crashes guests at random.
const QEMU_SUITE: &str = "bookworm-backports";
const QEMU_VERSION: &str = "1:10.0.2+ds-2+deb13u1~bpo12+1";
const QEMU_COMMON: [Pinned; 2] = [
    Pinned {
        name: "qemu-system-common",
        version: QEMU_VERSION,
        sha256: "23a4672a138832d7173855e981aa8282c73ef5e04e080fa7ada9f82c6b34f507",
    },
    Pinned {
        name: "qemu-system-data",
        version: QEMU_VERSION,
        sha256: "2d831088187087013b3fcbd19bdfb955b182a2d5a08f6dafa0ad1c6d2007fb4e",
    },
];
const QEMU_X86: [Pinned; 4] = [
    Pinned {
        name: "qemu-system-x86",
        version: QEMU_VERSION,
        sha256: "4a6b1856c8b0d7df4ff8e70249e12c473ccf8d516aadb4ae14d3d938faed0c65",
    },
    QEMU_COMMON[0],
    QEMU_COMMON[1],
    Pinned {
        name: "seabios",
        version: "1.16.3-2~bpo12+1",
        sha256: "48390d0a534c66d11789e39518aa219773a9d3677b29fe1af8799dfb563ec713",
    },
];

const QEMU_ARM64: [Pinned; 3] = [
    Pinned {
        name: "qemu-system-arm",
        version: QEMU_VERSION,
        sha256: "edebbab09db3882c48ef9c00049c7c6a2d76d195cb88d830baadd1fb705bbc66",
    },
    QEMU_COMMON[0],
    QEMU_COMMON[1],
];

const BUSYBOX_SUITE: &str = "bookworm";
const BUSYBOX: Pinned = Pinned {
    name: "busybox-static",
    version: "1:1.35.0-4+deb12u1+b1",
    sha256: "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744",
};

/// With this set to 1, the newest version that the mirror has is taken, of the same series, and no checksum asked.
pub(crate) const LATEST_VARIABLE: &str = "SPRY_VM_LATEST";

/// Everything, unpacked.
pub(crate) struct Parts {
    qemu: PathBuf,
    program: &'static str,
    pub(crate) base: Base,
}

/// What is in a guest besides what it is given.
pub(crate) enum Base {
    /// A static busybox; libraries are this machine's.
    Busybox(PathBuf),
    /// A whole system, as this folder.
    System(PathBuf),
}

/// QEMU and what is in the guest, downloaded when they aren't there.
pub(crate) fn parts(machine: Machine) -> Result<Parts, Failure> {
    if cfg!(not(target_arch = "x86_64")) {
        let found = "guests are emulated, and their programs built, on x86-64".into();
        return Err(Failure::Expectation { what: "vm: look at this machine", found });
    }
    match machine {
        Machine::X86 => Ok(Parts {
            qemu: unpacked("qemu", QEMU_SUITE, &QEMU_X86)?,
            program: "qemu-system-x86_64",
            base: Base::Busybox(unpacked("busybox", BUSYBOX_SUITE, &[BUSYBOX])?.join("bin/busybox")),
        }),
        Machine::Arm64(_) => Ok(Parts {
            qemu: unpacked("qemu-arm64", QEMU_SUITE, &QEMU_ARM64)?,
            program: "qemu-system-aarch64",
            base: Base::System(userland::arm64()?),
        }),
    }
}

impl Parts {
    /// The emulator.
    pub(crate) fn emulator(&self) -> PathBuf {
        self.qemu.join("usr/bin").join(self.program)
    }

    /// Where it looks for firmware.
    pub(crate) fn firmware(&self) -> [PathBuf; 2] {
        ["usr/share/qemu", "usr/share/seabios"].map(|folder| self.qemu.join(folder))
    }

    /// For `LD_LIBRARY_PATH`.
    pub(crate) fn libraries(&self) -> String {
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        folders.map(|folder| self.qemu.join(folder).display().to_string()).join(":")
    }
}

/// The kernel of this series.
pub(crate) fn find(series: &str) -> Result<&'static Kernel, Failure> {
    let mut kernels = KERNELS.iter().chain(&ARM64_KERNELS);
    kernels.find(|kernel| kernel.series == series).ok_or_else(|| {
        let known: Vec<&str> = KERNELS.iter().chain(&ARM64_KERNELS).map(|kernel| kernel.series).collect();
        let known = known.join(", ");
        Failure::Usage(format!("there is no kernel `{series}` for guests, only: {known}"))
    })
}

impl Kernel {
    /// The kernel's image, downloaded when it isn't there.
    pub(crate) fn image(&self) -> Result<PathBuf, Failure> {
        let name = format!("linux-{}", self.series);
        let folder = match (latest(), self.machine) {
            (false, Machine::X86) => unpacked(&name, KERNEL_SUITE, &[self.package])?,
            (false, Machine::Arm64(_)) => unpacked_for(Some("arm64"), &name, KERNEL_SUITE, &[self.package])?,
            (true, machine) => self.newest(&name, machine)?,
        };
        let mut places = vec![folder.join("boot")];
        let modules = fs::read_dir(folder.join("usr/lib/modules")).into_iter().flatten().flatten();
        places.extend(modules.map(|entry| entry.path()));
        let mut files = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
        let is_image = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        };
        files.find_map(|entry| Some(entry.path()).filter(is_image)).ok_or_else(|| Failure::Expectation {
            what: "vm: find the kernel's image",
            found: format!("there is no vmlinuz in {}", folder.display()),
        })
    }

    fn newest(&self, name: &str, machine: Machine) -> Result<PathBuf, Failure> {
        let folder = process::target_dir().join("vm").join(format!("{name}-newest"));
        step(&folder, "newest", || {
            let state = folder.join("apt");
            let apt = match machine {
                Machine::X86 => Apt::open(&state, &[KERNEL_SUITE])?,
                Machine::Arm64(_) => Apt::open_for(&state, &[KERNEL_SUITE], "arm64")?,
            };
            let series = self.series.split('-').next().unwrap_or_default().replace('.', "\\.");
            // `-cloud-amd64`, `-cloud-arm64`, `-arm64-16k`
            let kind = self.package.name.split_once("+deb13").map_or("", |(_, kind)| kind);
            let names =
                apt.named(&format!("^linux-(image|binary)-{series}\\.[0-9]+.*\\+deb[0-9]+{kind}$"))?;
            let newest = names.iter().max_by_key(|name| numbers(name)).ok_or_else(|| {
                let found = format!("{KERNEL_SUITE} has no kernel of the series {}", self.series);
                Failure::Expectation { what: "vm: find a kernel", found }
            })?;
            println!("vm: taking {newest}");
            apt.download(&[newest])?;
            debian::unpack(&apt.archives()?, &folder)
        })?;
        Ok(folder)
    }
}

/// The numbers in a package's name, for comparing versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn latest() -> bool {
    std::env::var_os(LATEST_VARIABLE).is_some_and(|value| value == "1")
}

/// Downloads these packages to `target/vm/NAME`, compares their checksums, and unpacks them there.
fn unpacked(name: &str, suite: &str, packages: &[Pinned]) -> Result<PathBuf, Failure> {
    unpacked_for(None, name, suite, packages)
}

/// The same for another machine, as Debian calls it.
fn unpacked_for(
    machine: Option<&str>,
    name: &str,
    suite: &str,
    packages: &[Pinned],
) -> Result<PathBuf, Failure> {
    let folder = process::target_dir().join("vm").join(name);
    let recipe: Vec<&str> = packages.iter().map(|package| package.sha256).collect();
    let recipe = if latest() { "newest".to_owned() } else { recipe.join(" ") };
    step(&folder, &recipe, || {
        fetch(machine, &folder, suite, packages).map_err(|cause| gone(&cause, suite, packages))
    })?;
    Ok(folder)
}

fn fetch(machine: Option<&str>, folder: &Path, suite: &str, packages: &[Pinned]) -> Result<(), Failure> {
    let state = folder.join("apt");
    println!(
        "vm: downloading {}",
        packages.iter().map(|package| package.name).collect::<Vec<_>>().join(", ")
    );
    // The libraries of a backport are those of the release itself.
    let release = suite.split('-').next().unwrap_or(suite);
    let suites = if release == suite { vec![suite] } else { vec![suite, release] };
    let apt = match machine {
        None => Apt::open(&state, &suites)?,
        Some(machine) => Apt::open_for(&state, &suites, machine)?,
    };
    let wanted: Vec<String> = packages
        .iter()
        .map(|Pinned { name, version, .. }| match latest() {
            true => format!("{name}/{suite}"),
            false => format!("{name}={version}"),
        })
        .collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    if packages.len() > 1 {
        apt.download_with_what_they_need(&wanted)?;
    } else {
        apt.download(&wanted)?;
    }
    let archives = apt.archives()?;
    for Pinned { name, version, sha256 } in packages.iter().filter(|_| !latest()) {
        let is_it = |file: &&PathBuf| {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            file.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'))
        };
        let sum = archives.iter().find(is_it).map(|file| debian::sha256(file)).transpose()?;
        if sum.as_deref() != Some(*sha256) {
            let found = format!("{name} {version} should have the sha256 {sha256}, not {sum:?}");
            return Err(Failure::Expectation { what: "compare a checksum", found });
        }
    }
    debian::unpack(&archives, folder)?;
    fs::remove_dir_all(&state).map_err(|source| Failure::io("remove", &state, source))
}

/// What to do when the mirror doesn't have a pinned version any more.
fn gone(cause: &Failure, suite: &str, packages: &[Pinned]) -> Failure {
    let names: Vec<String> = packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
    let found = format!(
        "{cause}. If the mirror has a newer version only (`apt-cache policy` on {suite}): set {LATEST_VARIABLE}=1 to \
         take the newest of the same series, unchecked, or change the pins in xtask/src/vm/parts.rs"
    );
    println!("vm: {} could not be had", names.join(", "));
    Failure::Expectation { what: "vm: download what guests are made of", found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let names = ["linux-image-6.18.9+deb13-cloud-amd64", "linux-image-6.18.15+deb13-cloud-amd64"];
        assert!(numbers(names[0]) < numbers(names[1]));
    }

    #[test]
    fn an_unknown_kernel_is_bad_usage_and_names_those_that_there_are() {
        let failure = find("5.4").map(|kernel| kernel.series).expect_err("5.4");
        assert_eq!(failure.exit_code(), 64);
        assert!(failure.to_string().contains("6.16, 6.18, 7.2, 6.18-arm64, 6.18-arm64-16k"), "{failure}");
    }
}
