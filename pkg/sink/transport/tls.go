// SPDX-License-Identifier: Apache-2.0

// Package transport is what sinks that speak over a network share: TLS,
// credentials from files, connections that obey a context, and HTTP.
package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// TLS configures the client's side of TLS 1.2 or later. Its zero value trusts
// the system's authorities and shows no certificate.
type TLS struct {
	// CAFile holds the authorities (PEM) that may have signed the collector's
	// certificate, in place of the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile (PEM) are the client's certificate. They are read
	// at each handshake, so that a renewed one is taken without a restart.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is the name in the collector's certificate, where it is not
	// the host of the address.
	ServerName string `yaml:"server_name"`
}

// Config reads the files and returns what crypto/tls wants for a collector at
// host.
func (t *TLS) Config(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t == nil {
		return c, nil
	}
	if t.ServerName != "" {
		c.ServerName = t.ServerName
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read tls.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read tls.ca_file %s: no certificate in it (PEM is wanted)", t.CAFile)
		}
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("tls.cert_file and tls.key_file belong together: one is missing")
	}
	if t.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("load the client certificate %s: %w", t.CertFile, err)
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}

// Secret is the path of a file that holds a password, token or key alone. The
// configuration never holds the secret itself.
type Secret string

// Read returns the secret without the white space around it. It is read each
// time, so that a renewed one is taken without a restart.
func (s Secret) Read() (string, error) {
	b, err := os.ReadFile(string(s))
	if err != nil {
		return "", fmt.Errorf("read the credentials: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", fmt.Errorf("read the credentials: %s is empty", s)
	}
	if strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("read the credentials: %s holds more than one line", s)
	}
	return text, nil
}
