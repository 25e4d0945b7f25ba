//! The state of training on a device, and its way there and back.

use super::abi::Weights;
use super::bytes::{as_bytes, as_bytes_mut};
use crate::backend::{Moments, Parameter, TrainState};
use kronsae::Result;
use kronsae::cuda::{Device, DeviceMemory, Element};
use std::sync::Arc;

/// Elements that are rounded or widened at a time.
const ROUNDED_AT_A_TIME: usize = 1 << 20;

/// A parameter on the device: f32, its moments, and its copy in the element type where that is another.
pub(super) struct DeviceParameter {
    value: DeviceMemory,
    first: DeviceMemory,
    second: DeviceMemory,
    moments: Moments,
    copy: Option<DeviceMemory>,
}

/// Memory that holds `values`.
fn uploaded(device: &dyn Device, values: &[f32], what: &str) -> Result<DeviceMemory> {
    let memory = device.allocate(size_of_val(values), what)?;
    device.upload(&memory, 0, as_bytes(values))?;
    Ok(memory)
}

/// Memory that holds `values` rounded to bf16.
fn uploaded_bf16(device: &dyn Device, values: &[f32], what: &str) -> Result<DeviceMemory> {
    let memory = device.allocate(values.len() * 2, what)?;
    let mut rounded = Vec::new();
    for (at, part) in values.chunks(ROUNDED_AT_A_TIME).enumerate() {
        rounded.clear();
        rounded.extend(part.iter().map(|&v| half::bf16::from_f32(v).to_bits()));
        device.upload(&memory, at * ROUNDED_AT_A_TIME * 2, as_bytes(&rounded))?;
    }
    Ok(memory)
}

/// What `memory` holds in bf16, widened.
fn download_bf16(device: &dyn Device, memory: &DeviceMemory, to: &mut [f32]) -> Result<()> {
    let mut narrow = vec![0_u16; to.len().min(ROUNDED_AT_A_TIME)];
    for (at, part) in to.chunks_mut(ROUNDED_AT_A_TIME).enumerate() {
        let narrow = &mut narrow[..part.len()];
        device.download(memory, at * ROUNDED_AT_A_TIME * 2, as_bytes_mut(narrow))?;
        for (to, from) in part.iter_mut().zip(narrow) {
            *to = half::bf16::from_bits(*from).to_f32();
        }
    }
    Ok(())
}

impl DeviceParameter {
    /// Uploads a parameter; with a copy if `copy` is not f32. Moments in bf16 come back as they were uploaded if they had
    /// been in bf16 before.
    fn new(device: &dyn Device, from: &Parameter, copy: Element, moments: Moments, what: &str) -> Result<Self> {
        let moment = |values: &[f32]| match moments {
            Moments::F32 => uploaded(device, values, what),
            Moments::Bf16 => uploaded_bf16(device, values, what),
        };
        Ok(DeviceParameter {
            value: uploaded(device, &from.value, what)?,
            first: moment(&from.first)?,
            second: moment(&from.second)?,
            moments,
            copy: match copy {
                Element::F32 => None,
                Element::Bf16 => Some(uploaded_bf16(device, &from.value, what)?),
            },
        })
    }

    fn download(&self, device: &dyn Device, to: &mut Parameter) -> Result<()> {
        device.download(&self.value, 0, as_bytes_mut(&mut to.value))?;
        for (from, to) in [(&self.first, &mut to.first), (&self.second, &mut to.second)] {
            match self.moments {
                Moments::F32 => device.download(from, 0, as_bytes_mut(to))?,
                Moments::Bf16 => download_bf16(device, from, to)?,
            }
        }
        Ok(())
    }

    /// As kernels take it.
    pub(super) fn weights(&self) -> Weights {
        Weights {
            value: self.value.address(),
            first: self.first.address(),
            second: self.second.address(),
            copy: self.copy.as_ref().map_or(0, DeviceMemory::address),
        }
    }

    /// What products and gathers read: the copy, or the value itself where there is none.
    pub(super) fn read(&self) -> u64 {
        self.copy.as_ref().unwrap_or(&self.value).address()
    }

    /// The value in f32.
    pub(super) fn value(&self) -> u64 {
        self.value.address()
    }

    fn bytes(&self) -> usize {
        self.value.bytes()
            + self.first.bytes()
            + self.second.bytes()
            + self.copy.as_ref().map_or(0, DeviceMemory::bytes)
    }
}

/// All that training changes, on the device.
pub(super) struct DeviceState {
    device: Arc<dyn Device>,
    pub(super) encoder: DeviceParameter,
    pub(super) encoder_bias: DeviceParameter,
    pub(super) decoder: DeviceParameter,
    pub(super) decoder_bias: DeviceParameter,
    /// u64, `[latents]` and `[rows]`.
    pub(super) fired_at: DeviceMemory,
    pub(super) positive_at: DeviceMemory,
    /// f64: norms of the last gradients in the order of `TrainState::parameters`; then the square of W's norm.
    pub(super) norms: DeviceMemory,
}

/// Numbers in [`DeviceState::norms`].
pub(super) const NORMS: usize = 5;

impl DeviceState {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        state: &TrainState,
        element: Element,
        moments: Moments,
    ) -> Result<Self> {
        let parameter = DeviceParameter::new;
        let on = &**device;
        let counts = |from: &[u64], what: &str| -> Result<DeviceMemory> {
            let memory = on.allocate(size_of_val(from), what)?;
            on.upload(&memory, 0, as_bytes(from))?;
            Ok(memory)
        };
        let norms = on.allocate(NORMS * 8, "norms of gradients")?;
        on.upload(&norms, 0, as_bytes(&state.gradient_norms))?;
        Ok(DeviceState {
            device: Arc::clone(device),
            encoder: parameter(on, &state.encoder_weight, element, moments, "the encoder")?,
            encoder_bias: parameter(on, &state.encoder_bias, element, Moments::F32, "the encoder's bias")?,
            decoder: parameter(on, &state.decoder_weight, element, moments, "the decoder")?,
            decoder_bias: parameter(on, &state.decoder_bias, Element::F32, Moments::F32, "the decoder's bias")?,
            fired_at: counts(&state.fired_at, "when latents fired")?,
            positive_at: counts(&state.positive_at, "when rows were positive")?,
            norms,
        })
    }

    /// Copies everything back but the number of tokens, which the host counts itself; norms only where `norms` are kept.
    pub(super) fn download(&self, to: &mut TrainState, norms: bool) -> Result<()> {
        let on = &*self.device;
        self.encoder.download(on, &mut to.encoder_weight)?;
        self.encoder_bias.download(on, &mut to.encoder_bias)?;
        self.decoder.download(on, &mut to.decoder_weight)?;
        self.decoder_bias.download(on, &mut to.decoder_bias)?;
        on.download(&self.fired_at, 0, as_bytes_mut(&mut to.fired_at))?;
        on.download(&self.positive_at, 0, as_bytes_mut(&mut to.positive_at))?;
        if norms {
            on.download(&self.norms, 0, as_bytes_mut(&mut to.gradient_norms))?;
        }
        Ok(())
    }

    /// Bytes of parameters, copies and moments.
    pub(super) fn parameter_bytes(&self) -> usize {
        [&self.encoder, &self.encoder_bias, &self.decoder, &self.decoder_bias].map(DeviceParameter::bytes).iter().sum()
    }
}
