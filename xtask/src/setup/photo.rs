//! A real photograph for the demo: 20 megapixels from a Debian package, never installed, only unpacked.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::apt;
use crate::failure::Failure;
use crate::process;

const PACKAGE: &str = "lomiri-wallpapers-20.04";
const FILE: &str = "usr/share/backgrounds/Kleiber_by_Lukas_Baubkus.jpg";

/// The photograph and whose it is.
#[derive(Debug)]
pub(crate) struct Photo {
    pub(crate) file: PathBuf,
    pub(crate) credit: &'static str,
}

/// The photograph; it is fetched once for this clone (11 MB).
pub(crate) fn photo() -> Result<Photo, Failure> {
    let folder = process::target_dir().join("photo");
    let photo = Photo {
        file: folder.join("nuthatch.jpg"),
        credit: "a nuthatch, by Lukas Baubkus, CC BY-SA 3.0, from Debian's lomiri-wallpapers-20.04",
    };
    if photo.file.exists() {
        return Ok(photo);
    }
    println!("setup: fetching {}", photo.credit);
    let unpack = folder.join("unpack");
    if unpack.exists() {
        fs::remove_dir_all(&unpack).map_err(|source| Failure::io("remove", &unpack, source))?;
    }
    fs::create_dir_all(&unpack).map_err(|source| Failure::io("make folder", &unpack, source))?;
    apt::download(PACKAGE, &unpack)?;
    process::run(Command::new("sh").current_dir(&unpack).args(["-c", "dpkg-deb -x ./*.deb ."]))?;
    fs::rename(unpack.join(FILE), &photo.file)
        .map_err(|source| Failure::io("keep the photograph as", &photo.file, source))?;
    fs::remove_dir_all(&unpack).map_err(|source| Failure::io("remove", &unpack, source))?;
    Ok(photo)
}
