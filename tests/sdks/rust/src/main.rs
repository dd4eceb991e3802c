//! Prints who the default credential chain of AWS SDK for Rust says we are.

use aws_config::BehaviorVersion;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), aws_sdk_sts::Error> {
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let identity = aws_sdk_sts::Client::new(&config).get_caller_identity().send().await?;
    println!("{}", identity.arn().unwrap_or_default());
    Ok(())
}
