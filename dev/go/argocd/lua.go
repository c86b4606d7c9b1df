package main

import (
	"encoding/json"
	"fmt"
	"io"

	appv1 "github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Question asks for one of health, discovery or action, as Argo CD runs them: without the Lua libraries.
type Question struct {
	Ask    string         `json:"ask"`
	Script string         `json:"script"`
	Object map[string]any `json:"object"`
}

// Answer holds what was asked for, or the engine's error.
type Answer struct {
	Health   *health.HealthStatus   `json:"health,omitempty"`
	Actions  []appv1.ResourceAction `json:"actions,omitempty"`
	Impacted []Impacted             `json:"impacted,omitempty"`
	Error    string                 `json:"error,omitempty"`
}

// Impacted is an object that an action wants written, and how: patch or create.
type Impacted struct {
	Operation string         `json:"operation"`
	Object    map[string]any `json:"object"`
}

// judge reads a JSON array of questions and writes the array of their answers.
func judge(in io.Reader, out io.Writer) error {
	var questions []Question
	if err := json.NewDecoder(in).Decode(&questions); err != nil {
		return err
	}
	answers := make([]Answer, len(questions))
	for i, question := range questions {
		if err := answers[i].fill(question); err != nil {
			answers[i].Error = err.Error()
		}
	}
	return json.NewEncoder(out).Encode(answers)
}

func (a *Answer) fill(question Question) (err error) {
	vm := lua.VM{}
	object := &unstructured.Unstructured{Object: question.Object}
	switch question.Ask {
	case "health":
		a.Health, err = vm.ExecuteHealthLua(object, question.Script)
	case "discovery":
		a.Actions, err = vm.ExecuteResourceActionDiscovery(object, []string{question.Script})
	case "action":
		var impacted []lua.ImpactedResource
		impacted, err = vm.ExecuteResourceAction(object, question.Script, nil)
		for _, one := range impacted {
			a.Impacted = append(a.Impacted, Impacted{string(one.K8SOperation), one.UnstructuredObj.Object})
		}
	default:
		err = fmt.Errorf("ask is %q: use health, discovery or action", question.Ask)
	}
	return err
}
