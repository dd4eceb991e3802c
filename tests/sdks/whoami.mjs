// Prints who the default credential chain of AWS SDK for JavaScript 3 says we are.
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const who = await new STSClient().send(new GetCallerIdentityCommand());
console.log(who.Arn);
