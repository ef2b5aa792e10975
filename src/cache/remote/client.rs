//! The object store behind an address: made when first needed, with bounded patience, settings from the environment.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::error::plain;

/// Under the prefix of the user; bumped when older programs cannot read what newer ones write.
const VERSION: &str = "flow-1";

/// Threads that wait for the network; hashing and DuckDB have their own.
const THREADS: usize = 4;

pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) runtime: tokio::runtime::Runtime,
}

impl Client {
    /// # Errors
    /// The environment lacks something that the provider needs; a text for people.
    pub(super) fn new(address: &str) -> Result<Self, String> {
        let (scheme, place) = address.split_once("://").unwrap_or_default();
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let failed = |error: object_store::Error| plain(&error.to_string());
        let store: Arc<dyn ObjectStore> = match scheme {
            "s3" => Arc::new(s3(bucket).with_retry(retry()).build().map_err(failed)?),
            "gs" => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(patience())
                    .with_retry(retry())
                    .build()
                    .map_err(failed)?,
            ),
            "az" => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_client_options(patience())
                    .with_retry(retry())
                    .build()
                    .map_err(failed)?,
            ),
            // A power cut leaves no entry without its content.
            "file" => Arc::new(LocalFileSystem::new().with_fsync(true)),
            other => return Err(format!("`{other}` is no kind of store")),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("shared cache")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let prefix = Path::parse(prefix.trim_end_matches('/'))
            .map_err(|error| error.to_string())?
            .join(VERSION);
        Ok(Self {
            store,
            prefix,
            runtime,
        })
    }
}

/// `AWS_…` as other programs read them; a server on this machine may speak plain HTTP without being told so.
fn s3(bucket: &str) -> AmazonS3Builder {
    use object_store::ClientConfigKey::AllowHttp;
    use object_store::aws::AmazonS3ConfigKey::{Client, Endpoint, S3Endpoint};
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let told = builder.get_config_value(&Client(AllowHttp));
    let endpoint = [S3Endpoint, Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    let allowed = told.as_deref() == Some("true") || endpoint.as_deref().is_some_and(is_loopback);
    builder.with_client_options(patience().with_allow_http(allowed))
}

fn is_loopback(endpoint: &str) -> bool {
    let host = reqwest::Url::parse(endpoint)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

fn patience() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(3))
        // One request moves at most one part of a file.
        .with_timeout(Duration::from_secs(60))
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(15),
    }
}
