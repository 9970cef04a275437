package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ModelService is rouse.dev/v1alpha1's, with the fields that this operator acts on and no others: what it
// does not need it does not keep in memory.
type ModelService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              ModelServiceSpec   `json:"spec"`
	Status            ModelServiceStatus `json:"status,omitempty"`
}

type ModelServiceSpec struct {
	Replicas int        `json:"replicas"`
	Guards   GuardsSpec `json:"guards,omitempty"`
	Engine   EngineSpec `json:"engine"`
}

type GuardsSpec struct {
	Replicas int `json:"replicas,omitempty"`
}

type EngineSpec struct {
	Image string   `json:"image"`
	Args  []string `json:"args,omitempty"`
}

type ModelServiceStatus struct {
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	Replicas           int   `json:"replicas"`
	ReadyReplicas      int   `json:"readyReplicas"`
	Desired            int   `json:"desired"`
	Active             int   `json:"active"`
	Guards             int   `json:"guards"`
}

type ModelServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ModelService `json:"items"`
}

func (s *ModelService) DeepCopyObject() runtime.Object {
	copied := *s
	s.ObjectMeta.DeepCopyInto(&copied.ObjectMeta)
	copied.Spec.Engine.Args = append([]string(nil), s.Spec.Engine.Args...)
	return &copied
}

func (l *ModelServiceList) DeepCopyObject() runtime.Object {
	copied := *l
	l.ListMeta.DeepCopyInto(&copied.ListMeta)
	copied.Items = make([]ModelService, len(l.Items))
	for i := range l.Items {
		copied.Items[i] = *l.Items[i].DeepCopyObject().(*ModelService)
	}
	return &copied
}

func addToScheme(scheme *runtime.Scheme) error {
	version := schema.GroupVersion{Group: "rouse.dev", Version: "v1alpha1"}
	scheme.AddKnownTypes(version, &ModelService{}, &ModelServiceList{})
	metav1.AddToGroupVersion(scheme, version)
	return nil
}
