"""What an image is made of: packages, their licences, and the CycloneDX document of both."""
