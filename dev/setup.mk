# What waits for what, for dev/setup.sh: a target needs those behind its colon and nothing else. Each does nothing when it
# is done already.
.PHONY: env tools registry cluster images gitops monitoring

env:
	@dev/env.sh

tools:
	@dev/cluster.sh tools

registry:
	@dev/registry.sh up

cluster: tools registry
	@dev/cluster.sh up

images: env registry
	@dev/image.sh all

gitops: tools
	@dev/tools.sh gitops krew

# After the others: one build of Go at a time has the machine's cores busy.
monitoring: gitops
	@dev/tools.sh monitoring
