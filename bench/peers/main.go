// What rouse-operator is measured beside (bench/operator_scale.py): an operator for the same kind, as one
// writes it in Go with controller-runtime, in its simplest form that is right.
//
// It keeps spec.replicas pods with the role Active and spec.guards.replicas with the role Guard. A scale-out
// claims guards that sleep by a patch of their role (of this version of the pod only, so that a claim is made
// once) and creates pods for what guards do not cover; a scale-in makes guards of replicas while guards are
// short, and deletes the rest. The status tells how many there are.
//
// Everything is controller-runtime's default: one cache of whole objects, one worker, its work queue, no
// limit to the rate of calls. Claims of one scale-out go out eight at a time, as rouse-operator's do. It does
// much less than that one: no agents are told anything, no certificates, no readiness gates, no failures,
// no rollouts, no choice among guards.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const (
	labelService    = "rouse.dev/modelservice"
	labelRole       = "rouse.dev/role"
	annotationState = "rouse.dev/agent-state"
	roleActive      = "Active"
	roleGuard       = "Guard"
	ownerIndex      = "metadata.controller"
	claimsAtOnce    = 8
)

type reconciler struct {
	client.Client
	scheme *runtime.Scheme
}

// What there is of one ModelService; pods on their way out are left out. Replicas that are ready and guards
// that sleep come first, so that the last ones are the first to go; else in the order of names.
type pods struct {
	active, guards []*corev1.Pod
	names          map[string]bool // taken, by those on their way out too
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func isAsleep(pod *corev1.Pod) bool {
	return pod.Labels[labelRole] == roleGuard && pod.Annotations[annotationState] == "Asleep"
}

func (r *reconciler) list(ctx context.Context, service *ModelService) (pods, error) {
	found := pods{names: map[string]bool{}}
	var all corev1.PodList
	err := r.List(ctx, &all, client.InNamespace(service.Namespace),
		client.MatchingFields{ownerIndex: string(service.UID)})
	useful := func(pod *corev1.Pod) bool { return isReady(pod) || isAsleep(pod) }
	sort.Slice(all.Items, func(a, b int) bool {
		if left, right := useful(&all.Items[a]), useful(&all.Items[b]); left != right {
			return left
		}
		return all.Items[a].Name < all.Items[b].Name
	})
	for i := range all.Items {
		pod := &all.Items[i]
		found.names[pod.Name] = true
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Labels[labelRole] == roleGuard:
			found.guards = append(found.guards, pod)
		default:
			found.active = append(found.active, pod)
		}
	}
	return found, err
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var service ModelService
	if err := r.Get(ctx, request.NamespacedName, &service); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err) // Its pods go by their owner references.
	}
	if service.DeletionTimestamp != nil {
		return ctrl.Result{}, nil
	}
	found, err := r.list(ctx, &service)
	if err != nil {
		return ctrl.Result{}, err
	}
	var failures []error
	if missing := service.Spec.Replicas - len(found.active); missing > 0 {
		failures = r.scaleOut(ctx, &service, &found, missing)
	} else {
		failures = r.scaleIn(ctx, &service, &found, -missing)
	}
	if len(failures) == 0 && len(found.active) >= service.Spec.Replicas {
		failures = r.tendGuards(ctx, &service, &found)
	}
	failures = append(failures, r.publish(ctx, &service, &found))
	// A conflict means that the cache was behind: what it lacks brings this key back, and so does the queue.
	return ctrl.Result{}, errors.Join(failures...)
}

func (r *reconciler) scaleOut(ctx context.Context, service *ModelService, found *pods, missing int) []error {
	var asleep, rest []*corev1.Pod
	for _, guard := range found.guards {
		if len(asleep) < missing && isAsleep(guard) {
			asleep = append(asleep, guard)
		} else {
			rest = append(rest, guard)
		}
	}
	failures := r.setRoles(ctx, asleep, roleActive)
	found.active, found.guards = append(found.active, asleep...), rest
	return append(failures, r.create(ctx, service, found, missing-len(asleep), roleActive)...)
}

func (r *reconciler) scaleIn(ctx context.Context, service *ModelService, found *pods, surplus int) []error {
	split := len(found.active) - surplus
	victims := found.active[split:]
	found.active = found.active[:split]
	short := min(max(service.Spec.Guards.Replicas-len(found.guards), 0), len(victims))
	failures := r.setRoles(ctx, victims[:short], roleGuard)
	found.guards = append(found.guards, victims[:short]...)
	return append(failures, r.delete(ctx, victims[short:])...)
}

// Replicas come first: this is only reached when none is missing.
func (r *reconciler) tendGuards(ctx context.Context, service *ModelService, found *pods) []error {
	missing := service.Spec.Guards.Replicas - len(found.guards)
	if missing >= 0 {
		return r.create(ctx, service, found, missing, roleGuard)
	}
	surplus := found.guards[service.Spec.Guards.Replicas:]
	found.guards = found.guards[:service.Spec.Guards.Replicas]
	return r.delete(ctx, surplus)
}

// Each only if the pod is still as it was seen.
func (r *reconciler) setRoles(ctx context.Context, chosen []*corev1.Pod, role string) []error {
	failures := make([]error, len(chosen))
	var waiting sync.WaitGroup
	slots := make(chan struct{}, claimsAtOnce)
	for i, pod := range chosen {
		slots <- struct{}{}
		waiting.Go(func() {
			defer func() { <-slots }()
			before := pod.DeepCopy()
			pod.Labels[labelRole] = role
			failures[i] = r.Patch(ctx, pod,
				client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		})
	}
	waiting.Wait()
	return failures
}

func (r *reconciler) create(ctx context.Context, service *ModelService, found *pods, count int, role string) []error {
	var failures []error
	for ordinal := 0; count > 0; ordinal++ {
		name := fmt.Sprintf("%s-%d", service.Name, ordinal)
		if found.names[name] {
			continue
		}
		pod := render(service, name, role)
		err := ctrl.SetControllerReference(service, pod, r.scheme)
		if err == nil {
			err = r.Create(ctx, pod)
		}
		// The name is made of what was wanted: one that is there already is as good.
		failures = append(failures, client.IgnoreAlreadyExists(err))
		found.names[name] = true
		if role == roleGuard {
			found.guards = append(found.guards, pod)
		} else {
			found.active = append(found.active, pod)
		}
		count--
	}
	return failures
}

func (r *reconciler) delete(ctx context.Context, chosen []*corev1.Pod) []error {
	var failures []error
	for _, pod := range chosen {
		failures = append(failures, client.IgnoreNotFound(r.Delete(ctx, pod, client.Preconditions{UID: &pod.UID})))
	}
	return failures
}

func render(service *ModelService, name, role string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:      name,
			Namespace: service.Namespace,
			Labels:    map[string]string{labelService: service.Name, labelRole: role},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name:  "engine",
			Image: service.Spec.Engine.Image,
			Args:  service.Spec.Engine.Args,
		}}},
	}
}

func (r *reconciler) publish(ctx context.Context, service *ModelService, found *pods) error {
	before := service.DeepCopyObject().(*ModelService)
	ready := 0
	for _, pod := range found.active {
		if isReady(pod) {
			ready++
		}
	}
	service.Status = ModelServiceStatus{
		ObservedGeneration: service.Generation,
		Replicas:           len(found.active),
		ReadyReplicas:      ready,
		Desired:            service.Spec.Replicas,
		Active:             len(found.active),
		Guards:             len(found.guards),
	}
	if service.Status == before.Status {
		return nil
	}
	return client.IgnoreNotFound(r.Status().Patch(ctx, service, client.MergeFrom(before)))
}

func run() error {
	metrics := flag.String("metrics", ":8080", "where /metrics is served")
	health := flag.String("health", ":8081", "where /readyz is served")
	flag.Parse() // --kubeconfig is controller-runtime's own.
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), addToScheme(scheme)); err != nil {
		return err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Metrics:                metricsserver.Options{BindAddress: *metrics},
		HealthProbeBindAddress: *health,
	})
	if err != nil {
		return err
	}
	ctx := ctrl.SetupSignalHandler()
	byOwner := func(object client.Object) []string {
		if owner := metav1.GetControllerOf(object); owner != nil {
			return []string{string(owner.UID)}
		}
		return nil
	}
	if err := manager.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, ownerIndex, byOwner); err != nil {
		return err
	}
	err = ctrl.NewControllerManagedBy(manager).For(&ModelService{}).Owns(&corev1.Pod{}).
		Complete(&reconciler{Client: manager.GetClient(), scheme: scheme})
	if err != nil {
		return err
	}
	if err := manager.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	return manager.Start(ctx)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
