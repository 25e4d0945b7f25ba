package kronsae

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// Site is a place in the host's model where activations are tapped. It belongs to its monitor and needs no Close.
type Site struct {
	monitor *Monitor
	number  uint32
	name    string
}

// SiteOptions says where a site is.
type SiteOptions struct {
	// Name appears in events and metrics; unique in the monitor. There is no default.
	Name string
	// Layer, if not nil, must be the one the model was trained at, unless AnyLayer is set.
	Layer    *int
	AnyLayer bool
	// Watch are latents that metrics carry; with a threshold model only they are computed. Nil: all are computed.
	Watch []uint32
	// DModel is needed without a model.
	DModel int
}

// AddSite adds a site. The monitor keeps what it needs of sae, which may be closed afterwards; a nil sae means that there
// is no model yet and tokens are only recorded.
//
// Errors: [StatusInvalidArgument], also if the name is taken or a rule in force does not fit the model; [ErrClosed] if
// sae is closed.
func (m *Monitor) AddSite(options SiteOptions, sae *Sae) (*Site, error) {
	const op = "add site"
	monitor, err := m.use()
	if err != nil {
		return nil, err
	}
	defer m.done()
	var model *C.kronsae_sae
	if sae != nil {
		if model, err = sae.use(); err != nil {
			return nil, err
		}
		defer sae.done()
	}
	c := C.kronsae_site_options{struct_size: C.uint32_t(unsafe.Sizeof(C.kronsae_site_options{}))}
	if c.name, err = cString(op, "the name", options.Name); err != nil {
		return nil, err
	}
	defer freeString(c.name)
	if c.d_model, err = size(op, "d_model", options.DModel); err != nil {
		return nil, err
	}
	if options.Layer != nil {
		c.flags |= C.KRONSAE_SITE_HAS_LAYER
		if c.layer, err = number(op, "the layer", *options.Layer); err != nil {
			return nil, err
		}
	}
	if options.AnyLayer {
		c.flags |= C.KRONSAE_SITE_ANY_LAYER
	}
	if len(options.Watch) > 0 {
		// c is Go memory that is handed to C: what it points to must not move.
		var pinner runtime.Pinner
		defer pinner.Unpin()
		pinner.Pin(&options.Watch[0])
		c.watch, c.n_watch = words(options.Watch), C.size_t(len(options.Watch))
	}
	var site C.uint32_t
	var e *C.kronsae_error
	if status := C.kronsae_monitor_add_site(monitor, &c, model, &site, &e); status != 0 {
		return nil, failure(op, status, e)
	}
	return &Site{monitor: m, number: uint32(site), name: options.Name}, nil
}

// Name is the site's name.
func (s *Site) Name() string { return s.name }

// use begins a call on the site's monitor; s.monitor.done must follow if there was no error.
func (s *Site) use() (*C.kronsae_monitor, error) {
	if s == nil {
		return nil, ErrClosed
	}
	return s.monitor.use()
}

// Replace puts another model in force, of the same d_model, while taps go on. On an error the old one stays.
func (s *Site) Replace(sae *Sae) error {
	monitor, err := s.use()
	if err != nil {
		return err
	}
	defer s.monitor.done()
	model, err := sae.use()
	if err != nil {
		return err
	}
	defer sae.done()
	var e *C.kronsae_error
	return failure("replace model", C.kronsae_monitor_replace_sae(monitor, C.uint32_t(s.number), model, &e), e)
}

// LoadLabels reads a TSV file of latents and their labels, in place of those before. On an error the old ones stay.
func (s *Site) LoadLabels(path string) error {
	const op = "load labels"
	monitor, err := s.use()
	if err != nil {
		return err
	}
	defer s.monitor.done()
	name, err := cString(op, "the path", path)
	if err != nil {
		return err
	}
	defer freeString(name)
	var e *C.kronsae_error
	return failure(op, C.kronsae_monitor_load_labels(monitor, C.uint32_t(s.number), name, &e), e)
}
