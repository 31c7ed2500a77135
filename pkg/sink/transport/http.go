// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/stated-tcp/stated/pkg/sink"
)

// HTTP configures a client that posts to one collector.
type HTTP struct {
	// URL is http:// or https://; a path, where it has one, is kept.
	URL string `yaml:"url"`
	// Headers are added to each request.
	Headers map[string]string `yaml:"headers"`
	// User and PasswordFile are for basic authentication.
	User         string `yaml:"user"`
	PasswordFile Secret `yaml:"password_file"`
	// TokenFile is sent as "Authorization: Bearer TOKEN".
	TokenFile Secret `yaml:"token_file"`
	// Compression of requests: gzip (the default) or none.
	Compression string `yaml:"compression"`
	// TLS is for https.
	TLS *TLS `yaml:"tls"`
}

// Client posts requests. It is for one goroutine at a time.
type Client struct {
	URL *url.URL
	// Scheme is the word before the token, Bearer unless set.
	Scheme string

	cfg    HTTP
	client *http.Client
	gzip   *gzip.Writer
	packed bytes.Buffer
}

const (
	maxBody       = 16 << 20         // of an answer; a bulk of 10,000 errors is smaller
	maxRetryAfter = 10 * time.Minute // a collector may be wrong about its future
)

// NewClient checks cfg. defaultPath is used where the URL has no path.
func NewClient(cfg HTTP, defaultPath string) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	wrong := err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == ""
	var parse *url.Error
	switch {
	case wrong && strings.Contains(cfg.URL, "@"):
		// No part of it is told: the password of what is no URL can be anywhere,
		// and net/url quotes what it does not understand.
		return nil, errors.New("url: want http://host or https://host, without credentials: use user and password_file")
	case errors.As(err, &parse): // which has the whole URL
		return nil, fmt.Errorf("url: want http://host or https://host: %w", parse.Err)
	case wrong:
		return nil, fmt.Errorf("url %q: want http://host or https://host", cfg.URL)
	case u.User != nil:
		return nil, fmt.Errorf("url of %q: it holds credentials; use user and password_file", u.Host) // the user may be a token
	case cfg.TLS != nil && u.Scheme == "http":
		return nil, fmt.Errorf("url %q: tls is configured, but the scheme is http", u)
	case (cfg.User == "") != (cfg.PasswordFile == ""):
		return nil, errors.New("user and password_file belong together: one is missing")
	case cfg.User != "" && cfg.TokenFile != "":
		return nil, errors.New("user and token_file exclude each other")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = defaultPath
	}
	c := &Client{URL: u, Scheme: "Bearer", cfg: cfg}
	switch cfg.Compression {
	case "", "gzip":
		c.gzip, _ = gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	case "none":
	default:
		return nil, fmt.Errorf("compression %q: want gzip or none", cfg.Compression)
	}
	for _, s := range []Secret{cfg.PasswordFile, cfg.TokenFile} {
		if s != "" {
			if _, err := s.Read(); err != nil {
				return nil, err
			}
		}
	}
	secure, err := cfg.TLS.Config(u.Hostname())
	if err != nil {
		return nil, err
	}
	c.client = &http.Client{
		Transport: &http.Transport{
			Proxy:           http.ProxyFromEnvironment,
			DialContext:     (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig: secure,
			IdleConnTimeout: 90 * time.Second,
			// A retry comes over a new connection or this one, never many.
			MaxConnsPerHost:        1,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Answer is what the collector said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Post sends body to u and reads the whole answer within ctx. The error is
// temporary, and tells that no answer came; what Answer.Err tells is another
// matter.
func (c *Client) Post(ctx context.Context, u *url.URL, header map[string]string, body []byte) (*Answer, error) {
	packed := body
	if c.gzip != nil {
		c.packed.Reset()
		c.gzip.Reset(&c.packed)
		c.gzip.Write(body) // to memory: no error
		c.gzip.Close()
		packed = c.packed.Bytes()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	// An empty value lets net/http repeat the request over a new connection
	// when the one it had kept was closed meanwhile, and is not sent.
	req.Header["Idempotency-Key"] = nil
	if c.gzip != nil {
		req.Header.Set("Content-Encoding", "gzip")
	}
	req.Header.Set("User-Agent", "stated")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if err := c.authorize(req); err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, Cause(ctx, fmt.Errorf("send to the collector: %w", err))
	}
	defer resp.Body.Close()
	a := &Answer{Status: resp.StatusCode, Header: resp.Header}
	a.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(a.Body) > maxBody {
		err = fmt.Errorf("more than %d MiB", maxBody>>20)
	}
	if err != nil {
		return nil, Cause(ctx, fmt.Errorf("read the collector's answer (%s) from %s: %w", resp.Status, u.Redacted(), err))
	}
	return a, nil
}

func (c *Client) authorize(req *http.Request) error {
	for k, v := range c.cfg.Headers {
		if strings.EqualFold(k, "Host") {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	switch {
	case c.cfg.User != "":
		password, err := c.cfg.PasswordFile.Read()
		if err != nil {
			return err
		}
		req.SetBasicAuth(c.cfg.User, password)
	case c.cfg.TokenFile != "":
		token, err := c.cfg.TokenFile.Read()
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", c.Scheme+" "+token)
	}
	return nil
}

// Close ends idle connections.
func (c *Client) Close() { c.client.CloseIdleConnections() }

// Err says what the status means for a batch of n records: nil if they were
// taken. What is the configuration's fault (no permission, no such path) is
// temporary: records wait until it is mended.
func (a *Answer) Err(n int) error {
	if a.Status/100 == 2 {
		return nil
	}
	err := fmt.Errorf("the collector answered %d %s%s%s", a.Status, http.StatusText(a.Status), hints[a.Status], a.excerpt())
	switch a.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return Refused(n, err)
	}
	return &sink.Retry{After: a.RetryAfter(time.Now()), Err: err}
}

var hints = map[int]string{
	http.StatusUnauthorized:         " (check the credentials)",
	http.StatusForbidden:            " (check the credentials and what they allow)",
	http.StatusNotFound:             " (check the url)",
	http.StatusMethodNotAllowed:     " (check the url)",
	http.StatusMovedPermanently:     " (redirects are not followed: check the url)",
	http.StatusFound:                " (redirects are not followed: check the url)",
	http.StatusTemporaryRedirect:    " (redirects are not followed: check the url)",
	http.StatusPermanentRedirect:    " (redirects are not followed: check the url)",
	http.StatusUnsupportedMediaType: " (check the preset and compression)",
}

// excerpt quotes the beginning of the body; it is the peer's text.
func (a *Answer) excerpt() string {
	if len(a.Body) == 0 {
		return ""
	}
	return fmt.Sprintf(": %.300q", bytes.TrimSpace(a.Body[:min(len(a.Body), 1200)]))
}

// RetryAfter reads the header of that name (RFC 9110, 10.2.3), seconds or a
// date; 0 if there is none, and no more than ten minutes.
func (a *Answer) RetryAfter(now time.Time) time.Duration {
	text := a.Header.Get("Retry-After")
	var d time.Duration
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		d = time.Duration(max(0, min(seconds, int64(maxRetryAfter/time.Second)))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = at.Sub(now)
	}
	return max(0, min(d, maxRetryAfter))
}
