//! `requestrocket link …`: certificates for the connection between nodes and control planes, for
//! whoever has no authority of their own.

use std::path::Path;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use crate::cli::{LinkAuthorityArgs, LinkIssueArgs, Output};
use crate::private_file;
use crate::say;
use crate::serve::CannotStart;

/// How long an authority is valid, in days.
const AUTHORITY_DAYS: u32 = 3_650;
/// Clocks of machines differ: a certificate is valid from a day before it was made.
const BEFORE_DAYS: u32 = 1;

/// Makes an authority: `ca.pem` for all, `ca-key.pem` for whoever issues. Of a key that is there
/// alone it makes the certificate anew: what was issued with it holds.
///
/// # Errors
/// The certificate is there already, or a file cannot be used or written.
pub fn authority(args: &LinkAuthorityArgs) -> anyhow::Result<()> {
    let (certificate, key_file) = (args.dir.join("ca.pem"), args.dir.join("ca-key.pem"));
    absent(&certificate, &key_file)?;
    std::fs::create_dir_all(&args.dir).map_err(|error| unusable(&args.dir, error))?;
    let key = key_in(&key_file)?;
    let made = authority_params().self_signed(&key)?;
    write(&certificate, &made.pem())?;
    tell(args.output, &certificate, &key_file);
    Ok(())
}

/// Issues a certificate for a name: `{name}.pem` and `{name}-key.pem`. A key that is there alone is
/// used.
///
/// # Errors
/// The authority is not there, the name cannot be in a certificate, or a file cannot be written.
pub fn issue(args: &LinkIssueArgs) -> anyhow::Result<()> {
    let (certificate, key_file) = (
        args.dir.join(format!("{}.pem", args.name)),
        args.dir.join(format!("{}-key.pem", args.name)),
    );
    absent(&certificate, &key_file)?;
    if ServerName::try_from(args.name.as_str()).is_err() {
        let why = format!("`{}` is neither a host name nor an address", args.name);
        return Err(CannotStart(why).into());
    }
    let ca_key_file = args.dir.join("ca-key.pem");
    let ca_key = KeyPair::from_pem(&read(&ca_key_file)?);
    let ca_key = ca_key.map_err(|error| unusable(&ca_key_file, error))?;
    let issuer = Issuer::new(authority_params(), ca_key);
    let mut params = CertificateParams::new([args.name.clone()]).map_err(|error| {
        CannotStart(format!(
            "`{}` cannot be in a certificate: {error}",
            args.name
        ))
    })?;
    valid_for(&mut params, args.days);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
        .distinguished_name
        .push(DnType::CommonName, args.name.clone());
    let key = key_in(&key_file)?;
    let made = params.signed_by(&key, &issuer)?;
    write(&certificate, &made.pem())?;
    tell(args.output, &certificate, &key_file);
    Ok(())
}

/// Says what was made to a program; a person sees it in the folder.
fn tell(output: Output, certificate: &Path, key: &Path) {
    if output == Output::Json {
        say(&serde_json::json!({"certificate": certificate, "key": key}).to_string());
    }
}

/// What every authority of ours says of itself, so that issuing needs its key only.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    valid_for(&mut params, AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "RequestRocket link authority");
    params
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let day = std::time::Duration::from_secs(86_400);
    let now = SystemTime::now();
    params.not_before = (now - day * BEFORE_DAYS).into();
    params.not_after = (now + day * days).into();
}

fn read(path: &Path) -> anyhow::Result<String> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    Ok(found.ok_or_else(|| unusable(path, "make it with `requestrocket link authority`"))?)
}

fn absent(certificate: &Path, key: &Path) -> anyhow::Result<()> {
    let why = match (certificate.exists(), key.exists()) {
        (false, _) => return Ok(()),
        (true, true) => "it is there already, and is not overwritten".to_owned(),
        (true, false) => format!(
            "it is there already, and its key {} is not: put that back, or remove the certificate \
             to have both made anew",
            key.display()
        ),
    };
    Err(unusable(certificate, why).into())
}

/// The key of a certificate that is to be made: the one that is there, since a try that was
/// interrupted leaves it, or a new one.
fn key_in(path: &Path) -> anyhow::Result<KeyPair> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    if let Some(pem) = found.map(Zeroizing::new) {
        return Ok(KeyPair::from_pem(&pem).map_err(|error| unusable(path, error))?);
    }
    let key = KeyPair::generate()?;
    write(path, &Zeroizing::new(key.serialize_pem()))?;
    Ok(key)
}

fn write(path: &Path, pem: &str) -> anyhow::Result<()> {
    let written = private_file::write(path, pem.as_bytes());
    Ok(written.map_err(|error| unusable(path, error))?)
}

fn unusable(path: &Path, reason: impl std::fmt::Display) -> CannotStart {
    CannotStart(format!("{}: {reason}", path.display()))
}
