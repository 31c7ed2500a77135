// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

const maxPods = 64 << 20 // bytes of a list of pods

// PodSource reads the list of a node's pods, a Kubernetes v1 PodList in JSON.
type PodSource interface {
	read(ctx context.Context, into any) error
}

// PodFile is a file with the list, which something else writes.
type PodFile string

func (f PodFile) read(_ context.Context, into any) error {
	file, err := os.Open(string(f))
	if err != nil {
		return err
	}
	defer file.Close()
	return decode(file, maxPods, into)
}

// Kubelet is the node's own API. The account needs get on nodes/pods (Kubernetes
// 1.33 and later) or nodes/proxy.
type Kubelet struct {
	URL       string // https://NODE:10250
	TokenFile string // read each time, for it is renewed; "" none
	CAFile    string // who signed kubelet's certificate; "" the system's authorities
	Insecure  bool   // do not verify the certificate
}

func (k Kubelet) read(ctx context.Context, into any) error {
	token := ""
	if k.TokenFile != "" {
		b, err := os.ReadFile(k.TokenFile)
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(b))
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: k.Insecure}
	if k.CAFile != "" {
		pem, err := os.ReadFile(k.CAFile)
		if err != nil {
			return err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("no certificate in %s", k.CAFile)
		}
	}
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
	}
	status, err := getJSON(ctx, client, strings.TrimRight(k.URL, "/")+"/pods", token, maxPods, into)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answered %d", status)
	}
	return err
}

type podName struct{ name, namespace, container, image string }

type podList struct {
	Items []struct {
		Metadata struct {
			Name, Namespace, UID string
			Annotations          map[string]string
		}
		Status struct {
			ContainerStatuses, InitContainerStatuses, EphemeralContainerStatuses []containerStatus
		}
	}
}

type containerStatus struct{ Name, Image, ContainerID string }

// askPods names a container of a pod; the list is read anew for one that is not
// in it, but not more often than NamesOptions.Retry says.
func (n *Names) askPods(ctx context.Context, now time.Time, c Container, name *Name) error {
	n.mu.Lock()
	pod, ok := n.podOf(c)
	read := !ok && !now.Before(n.podsAt)
	if read {
		n.podsAt = now.Add(n.opts.Retry)
		n.stats.Asked++
	}
	n.mu.Unlock()
	if read {
		ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
		defer cancel()
		var list podList
		if err := n.opts.Pods.read(ctx, &list); err != nil {
			n.mu.Lock()
			n.stats.Failed++
			n.mu.Unlock()
			return fmt.Errorf("list the pods of this node: %w", err)
		}
		pods := list.byID()
		n.mu.Lock()
		n.pods = pods
		pod, _ = n.podOf(c)
		n.mu.Unlock()
	}
	if pod != (podName{}) {
		*name = Name{Container: pod.container, Image: pod.image, Pod: pod.name, Namespace: pod.namespace}
	}
	return nil
}

// podOf returns what the list has of a container: itself, or of its pod alone
// (the sandbox, or a container that is not in the list yet; then ok is false).
func (n *Names) podOf(c Container) (pod podName, ok bool) {
	if pod, ok = n.pods[c.ID]; ok && c.ID != "" {
		return pod, true
	}
	pod, ok = n.pods[c.PodUID]
	return pod, ok && c.ID == ""
}

// byID lists pods by uid and their containers by id. The group of a static pod
// has the hash of its manifest for a uid (kubernetes pkg/kubelet/types/pod_update.go).
func (l podList) byID() map[string]podName {
	out := make(map[string]podName)
	for _, p := range l.Items {
		pod := podName{name: short(p.Metadata.Name), namespace: short(p.Metadata.Namespace)}
		for _, uid := range []string{p.Metadata.UID, p.Metadata.Annotations["kubernetes.io/config.hash"], p.Metadata.Annotations["kubernetes.io/config.mirror"]} {
			if uid != "" {
				out[uid] = pod
			}
		}
		for _, all := range [][]containerStatus{p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses, p.Status.ContainerStatuses} {
			for _, c := range all {
				if _, id, ok := strings.Cut(c.ContainerID, "://"); ok && id != "" {
					out[id] = podName{pod.name, pod.namespace, short(c.Name), short(c.Image)}
				}
			}
		}
	}
	return out
}

// getJSON reads an answer of at most max bytes into v, if it is 200 or 404 (then v stays).
func getJSON(ctx context.Context, client *http.Client, url, token string, max int64, v any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return resp.StatusCode, decode(resp.Body, max, v)
	case http.StatusNotFound:
		return resp.StatusCode, nil
	}
	return resp.StatusCode, fmt.Errorf("answered %d", resp.StatusCode)
}

func decode(r io.Reader, max int64, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > max {
		return errors.New("the answer is too long")
	}
	return json.Unmarshal(b, v)
}
