// Builds CoreDNS for the node image.
module espalier.dev/dev/go/coredns

go 1.25.0

tool github.com/coredns/coredns

require github.com/coredns/coredns v1.14.7
