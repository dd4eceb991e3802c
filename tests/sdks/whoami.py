"""Prints who the default credential chain of boto3 says we are."""

import os

import boto3

# Old releases do not read the variable.
sts = boto3.client("sts", endpoint_url=os.environ["AWS_ENDPOINT_URL_STS"])
print(sts.get_caller_identity()["Arn"])
