import software.amazon.awssdk.services.sts.StsClient;

/** Prints who the default credential chain of AWS SDK for Java 2 says we are. */
class WhoAmI {
    public static void main(String[] arguments) {
        try (var sts = StsClient.create()) {
            System.out.println(sts.getCallerIdentity().arn());
        } catch (RuntimeException e) {
            System.err.println(e.getMessage());
            System.exit(1);
        }
    }
}
