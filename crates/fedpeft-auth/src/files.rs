//! Files that only their owner reads, and that are whole or absent.

use std::{fs, io::Write, path::Path};

use crate::AuthError;

/// Makes a folder that only its owner enters.
pub(crate) fn private_folder(path: &Path) -> Result<(), AuthError> {
    let failed = AuthError::file(path);
    let make = || {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)?;
        // One that was there before keeps no wider permissions.
        #[cfg(unix)]
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(())
    };
    make().map_err(failed)
}

/// Writes a file that only its owner reads: it is made so, under another name, and then renamed.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), AuthError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        // Temporary files are made with mode 0600.
        let mut part = tempfile::Builder::new().prefix(".part-").tempfile_in(folder)?;
        part.write_all(text.as_bytes())?;
        part.as_file().sync_all()?;
        part.persist(path).map_err(|error| error.error)
    };
    write().map(drop).map_err(AuthError::file(path))
}
