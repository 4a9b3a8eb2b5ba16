//! What the demo deploys.
//!
//! A native function is a folder with its manifest and its `.so`. cargo leaves the `.so` elsewhere, so such folders are
//! put together in the demo's temporary one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::artifacts;
use crate::failure::Failure;

/// Functions that can be deployed from where they lie.
const READY: [&str; 5] = [
    "examples/hello/hello.py",
    "examples/wordcount",
    "examples/photo/watermark-python",
    "examples/boutique/ad",
    "examples/boutique/email",
];
/// Folders of native functions, and the library that each wants beside its manifest, from where cargo leaves it.
const NATIVE: [(&str, &str); 13] = [
    ("examples/thumbnail", "libexample_thumbnail.so"),
    ("examples/photo/decode", "examples/libphoto_decode.so"),
    ("examples/photo/resize", "examples/libphoto_resize.so"),
    ("examples/photo/watermark", "examples/libphoto_watermark.so"),
    ("examples/photo/encode", "examples/libphoto_encode.so"),
    ("examples/boutique/frontend", "examples/libboutique_frontend.so"),
    ("examples/boutique/cart", "examples/libboutique_cart.so"),
    ("examples/boutique/catalog", "examples/libboutique_catalog.so"),
    ("examples/boutique/currency", "examples/libboutique_currency.so"),
    ("examples/boutique/shipping", "examples/libboutique_shipping.so"),
    ("examples/boutique/recommendation", "examples/libboutique_recommendation.so"),
    ("examples/boutique/checkout", "examples/libboutique_checkout.so"),
    ("examples/boutique/payment", "examples/libboutique_payment.so"),
];
/// Chains of these functions.
pub(super) const CHAINS: [&str; 3] =
    ["examples/photo/chain.toml", "examples/photo/chain-python.toml", "examples/boutique/chain.toml"];

/// Everything that can be given to `spry deploy`; folders are made in `folder`.
pub(super) fn all(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut all: Vec<PathBuf> = READY.iter().map(PathBuf::from).collect();
    for (source, library) in NATIVE {
        all.push(stage(folder, Path::new(source), &artifacts::release(library))?);
    }
    Ok(all)
}

fn stage(folder: &Path, source: &Path, library: &Path) -> Result<PathBuf, Failure> {
    let staged = folder.join(source.file_name().expect("the constants name folders"));
    fs::create_dir(&staged).map_err(|error| Failure::io("make folder", &staged, error))?;
    for from in [&source.join("spry.toml"), library] {
        let to = staged.join(from.file_name().expect("both are files"));
        fs::copy(from, &to).map_err(|error| Failure::io("copy to the staging folder", from, error))?;
    }
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    fn parsed(path: &Path) -> toml::Table {
        fs::read_to_string(path).unwrap_or_default().parse().unwrap_or_else(|_| panic!("{}", path.display()))
    }

    #[test]
    fn each_folder_s_manifest_names_the_library_that_is_put_beside_it() {
        for (source, library) in NATIVE {
            let manifest = parsed(&process::root().join(source).join("spry.toml"));
            let name = Path::new(library).file_name().and_then(|name| name.to_str());
            assert_eq!(manifest["handler"].as_str(), name, "{source}");
        }
    }

    #[test]
    fn every_step_of_every_chain_is_deployed() {
        let folders = READY.into_iter().chain(NATIVE.map(|(source, _)| source));
        let manifests = folders.map(|folder| parsed(&process::root().join(folder).join("spry.toml")));
        let deployed: Vec<_> = manifests.filter_map(|manifest| manifest.get("name").cloned()).collect();
        for chain in CHAINS {
            let chain = parsed(&process::root().join(chain));
            for step in chain["step"].as_array().expect("steps") {
                let functions = match step.get("parallel") {
                    Some(branches) => branches.as_array().expect("branches").clone(),
                    None => vec![step["function"].clone()],
                };
                for function in functions {
                    assert!(deployed.contains(&function), "{function} is not deployed");
                }
            }
        }
    }
}
