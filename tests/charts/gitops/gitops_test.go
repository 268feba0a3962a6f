package gitops

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/runtime/cel"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const root = "../../.."

// What each tool says of a gateway with a status that the operator writes. Empty: it waits until there is something to judge.
var verdicts = map[string]struct{ argo, kstatus, flux string }{
	"ready":                    {"Healthy", "Current", "Current"},
	"redis-away":               {"Progressing", "InProgress", "InProgress"},
	"configuration-on-its-way": {"Progressing", "InProgress", "InProgress"},
	"rolling-out":              {"Progressing", "InProgress", "InProgress"},
	"rollout-stuck":            {"Degraded", "Failed", "Failed"},
	"paused":                   {"Suspended", "Failed", "Failed"},
	"secret-missing":           {"Degraded", "Failed", "Failed"},
	"scaled-to-zero":           {"Healthy", "InProgress", "InProgress"},
	"edited-since":             {"Progressing", "InProgress", "InProgress"},
	"invalid":                  {"Degraded", "Failed", "Failed"},
	// What kstatus says of it is why flux.yaml has expressions.
	"new": {"Progressing", "Current", ""},
}

func gateways(t *testing.T) map[string]*unstructured.Unstructured {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "operator/tests/status/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no statuses: %v", err)
	}
	all := map[string]*unstructured.Unstructured{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(text); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = object
	}
	if len(all) != len(verdicts) {
		t.Fatalf("%d statuses, and verdicts for %d", len(all), len(verdicts))
	}
	return all
}

func documents(t *testing.T, file string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(text, []byte("\n---\n"))
}

// As Argo CD runs a health check: the object is `obj`, and libraries other than the base one are not there.
func health(t *testing.T, script string, object map[string]any) (string, string) {
	t.Helper()
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	state.SetGlobal("obj", toLua(state, object))
	if err := state.DoString(script); err != nil {
		t.Fatalf("health.lua: %v", err)
	}
	said, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatal("health.lua returns no table")
	}
	return said.RawGetString("status").String(), said.RawGetString("message").String()
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, field := range value {
			table.RawSetString(key, toLua(state, field))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, element := range value {
			table.Append(toLua(state, element))
		}
		return table
	case string:
		return lua.LString(value)
	case bool:
		return lua.LBool(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	default:
		return lua.LNil
	}
}

func TestArgoCDKnowsHowAGatewayIs(t *testing.T) {
	var config struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(documents(t, "deploy/argocd/argocd-cm.yaml")[0], &config); err != nil {
		t.Fatal(err)
	}
	script := config.Data["resource.customizations.health.chatgateway.dev_ChatGateway"]
	for name, gateway := range gateways(t) {
		is, message := health(t, script, gateway.Object)
		if is != verdicts[name].argo || message == "" || message == "nil" {
			t.Errorf("%s: %s (%s), not %s", name, is, message, verdicts[name].argo)
		}
	}
}

func TestGatewaysFollowKstatus(t *testing.T) {
	for name, gateway := range gateways(t) {
		is, err := status.Compute(gateway)
		if err != nil || is.Status.String() != verdicts[name].kstatus {
			t.Errorf("%s: %v (%v), not %s", name, is, err, verdicts[name].kstatus)
		}
	}
}

func TestFluxTakesItsFiles(t *testing.T) {
	releases := map[string]*helmv2.HelmRelease{}
	kustomizations := 0
	for _, document := range documents(t, "deploy/flux/flux.yaml") {
		var kind struct {
			Kind       string `json:"kind"`
			APIVersion string `json:"apiVersion"`
		}
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		var into any
		var group string
		switch kind.Kind {
		case "GitRepository":
			into, group = &sourcev1.GitRepository{}, sourcev1.GroupVersion.String()
		case "HelmRelease":
			into, group = &helmv2.HelmRelease{}, helmv2.GroupVersion.String()
		case "Kustomization":
			into, group = &kustomizev1.Kustomization{}, kustomizev1.GroupVersion.String()
		default:
			t.Fatalf("a %s in flux.yaml", kind.Kind)
		}
		if kind.APIVersion != group {
			t.Errorf("%s is of %s, not %s", kind.Kind, kind.APIVersion, group)
		}
		if err := yaml.UnmarshalStrict(document, into); err != nil {
			t.Errorf("%s: %v", kind.Kind, err)
		}
		switch object := into.(type) {
		case *helmv2.HelmRelease:
			releases[object.Name] = object
		case *kustomizev1.Kustomization:
			kustomizations++
			tryExpressions(t, object)
		}
	}
	if kustomizations != 1 {
		t.Errorf("%d Kustomizations in flux.yaml", kustomizations)
	}
	operator := releases["chatgateway-operator"]
	if operator == nil || len(operator.Spec.DependsOn) != 1 || releases[operator.Spec.DependsOn[0].Name] == nil {
		t.Fatal("the operator's release depends on no release of this file")
	}
}

// The expressions say the same as kstatus, but where there is no status yet.
func tryExpressions(t *testing.T, kustomization *kustomizev1.Kustomization) {
	t.Helper()
	if len(kustomization.Spec.HealthCheckExprs) != 1 {
		t.Fatalf("%d health checks in flux.yaml", len(kustomization.Spec.HealthCheckExprs))
	}
	check := kustomization.Spec.HealthCheckExprs[0]
	evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
	if err != nil {
		t.Fatal(err)
	}
	for name, gateway := range gateways(t) {
		if gateway.GetKind() != check.Kind || gateway.GetAPIVersion() != check.APIVersion {
			t.Fatalf("the check is for %s of %s", check.Kind, check.APIVersion)
		}
		is, err := evaluator.Evaluate(context.Background(), gateway)
		said := ""
		if err == nil {
			said = is.Status.String()
		}
		if said != verdicts[name].flux {
			t.Errorf("%s: %q (%v), not %q", name, said, err, verdicts[name].flux)
		}
	}
}
