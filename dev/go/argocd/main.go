// Command argocd is Argo CD core in one binary, for tests that run without containers:
//
//	argocd application-controller|repo-server FLAGS   the two processes, with their own flags
//	argocd redis ADDRESS                              the cache that they share
//	argocd lua                                        judges objects with Argo CD's own Lua engine
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alicebob/miniredis/v2"
	controller "github.com/argoproj/argo-cd/v3/cmd/argocd-application-controller/commands"
	reposerver "github.com/argoproj/argo-cd/v3/cmd/argocd-repo-server/commands"
	"github.com/spf13/cobra"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return fmt.Errorf("usage: argocd application-controller|repo-server|redis|lua [flags]")
	}
	switch name, rest := arguments[0], arguments[1:]; name {
	case "application-controller":
		return execute(controller.NewCommand(), rest)
	case "repo-server":
		return execute(reposerver.NewCommand(), rest)
	case "redis":
		return redis(rest)
	case "lua":
		return judge(os.Stdin, os.Stdout)
	default:
		return fmt.Errorf("argocd has no command %q", name)
	}
}

func execute(command *cobra.Command, arguments []string) error {
	command.SetArgs(arguments)
	return command.Execute()
}

// redis serves an in-memory Redis on the address until it is told to end.
func redis(arguments []string) error {
	if len(arguments) != 1 {
		return fmt.Errorf("usage: argocd redis ADDRESS")
	}
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(arguments[0]); err != nil {
		return err
	}
	defer server.Close()
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
	return nil
}
