//! ONNX's own messages: a graph with its nodes and weights, and the model file around it. Field numbers are those of
//! `onnx.proto`.

use super::proto::{Message, matrix_bytes, write_matrix};
use kronsae::sae::Matrix;
use std::io::{self, Write};

/// The version of ONNX's file format that goes with the operator set.
const IR_VERSION: i64 = 8;
/// Weights in a file of their own start at multiples of this, so that they can be mapped.
const DATA_ALIGNMENT: u64 = 1 << 16;

/// Element types, `TensorProto.DataType`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Element {
    F32 = 1,
    I64 = 7,
}

/// An extent of a shape: a number, or the name of one that varies.
pub(super) enum Extent {
    Fixed(usize),
    Named(&'static str),
}

impl From<usize> for Extent {
    fn from(extent: usize) -> Self {
        Extent::Fixed(extent)
    }
}

impl From<&'static str> for Extent {
    fn from(name: &'static str) -> Self {
        Extent::Named(name)
    }
}

/// A graph under construction.
pub(super) struct Graph<'a> {
    name: &'static str,
    nodes: Vec<Node>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    constants: Vec<Constant<'a>>,
}

struct Constant<'a> {
    name: &'static str,
    values: Values<'a>,
}

enum Values<'a> {
    Matrix(&'a Matrix),
    Vector(&'a [f32]),
    /// With their shape: a vector's, or none for a scalar.
    Ints(Vec<usize>, bool),
}

/// An operator; attributes are added by chained calls.
pub(super) struct Node {
    op: &'static str,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// Name and values; one value and `false` for a single integer.
    attributes: Vec<(&'static str, Vec<i64>, bool)>,
}

impl Node {
    pub(super) fn int(&mut self, name: &'static str, value: i64) -> &mut Self {
        self.attributes.push((name, vec![value], false));
        self
    }

    pub(super) fn ints(&mut self, name: &'static str, values: &[i64]) -> &mut Self {
        self.attributes.push((name, values.to_vec(), true));
        self
    }

    /// `NodeProto`.
    fn message(&self, at: usize) -> Message<'static> {
        let mut node = Message::new();
        for input in &self.inputs {
            node = node.text(1, input);
        }
        for output in &self.outputs {
            node = node.text(2, output);
        }
        node = node.text(3, &format!("{}_{at}", self.op)).text(4, self.op);
        for (name, values, list) in &self.attributes {
            // `AttributeProto`, of type INTS or INT.
            let mut attribute = Message::new().text(1, name);
            for &value in values {
                attribute = attribute.int(if *list { 8 } else { 3 }, value);
            }
            node = node.message(5, attribute.int(20, if *list { 7 } else { 2 }));
        }
        node
    }
}

impl Constant<'_> {
    /// Bytes in a file of weights; nothing for what stays in the graph.
    fn data_bytes(&self) -> u64 {
        if let Values::Matrix(matrix) = &self.values { matrix_bytes(matrix) } else { 0 }
    }
}

/// `ValueInfoProto` of a tensor.
fn value_info(name: &str, element: Element, shape: &[Extent]) -> Vec<u8> {
    let dims = shape.iter().fold(Message::new(), |dims, extent| {
        let dim = match extent {
            Extent::Fixed(extent) => Message::new().int(1, *extent as i64),
            Extent::Named(name) => Message::new().text(2, name),
        };
        dims.message(1, dim)
    });
    let tensor = Message::new().int(1, element as i64).message(2, dims);
    let info = Message::new().text(1, name).message(2, Message::new().message(1, tensor));
    let mut bytes = Vec::new();
    info.write(&mut bytes).expect("a vector takes every byte");
    bytes
}

impl<'a> Graph<'a> {
    pub(super) fn new(name: &'static str) -> Self {
        Graph { name, nodes: Vec::new(), inputs: Vec::new(), outputs: Vec::new(), constants: Vec::new() }
    }

    pub(super) fn input(&mut self, name: &str, element: Element, shape: &[Extent]) {
        self.inputs.push(value_info(name, element, shape));
    }

    pub(super) fn output(&mut self, name: &str, element: Element, shape: &[Extent]) {
        self.outputs.push(value_info(name, element, shape));
    }

    /// A matrix of weights, as f32.
    pub(super) fn matrix(&mut self, name: &'static str, matrix: &'a Matrix) {
        self.constants.push(Constant { name, values: Values::Matrix(matrix) });
    }

    pub(super) fn vector(&mut self, name: &'static str, values: &'a [f32]) {
        self.constants.push(Constant { name, values: Values::Vector(values) });
    }

    /// A vector of integers: a shape, axes, a K.
    pub(super) fn ints(&mut self, name: &'static str, values: &[usize]) {
        self.constants.push(Constant { name, values: Values::Ints(values.to_vec(), true) });
    }

    pub(super) fn scalar(&mut self, name: &'static str, value: usize) {
        self.constants.push(Constant { name, values: Values::Ints(vec![value], false) });
    }

    /// Adds an operator.
    pub(super) fn node(&mut self, op: &'static str, inputs: &[&str], outputs: &[&str]) -> &mut Node {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        self.nodes.push(Node { op, inputs: own(inputs), outputs: own(outputs), attributes: Vec::new() });
        self.nodes.last_mut().expect("one was pushed")
    }

    /// `ModelProto`. Its matrices are in it, or in the file named `data` in the same folder, as
    /// [`Graph::write_data`] writes it.
    pub(super) fn model(&self, opset: i64, config: &str, data: Option<&str>) -> Message<'a> {
        let mut graph = Message::new();
        for (at, node) in self.nodes.iter().enumerate() {
            graph = graph.message(1, node.message(at));
        }
        graph = graph.text(2, self.name);
        let mut offset = 0;
        for constant in &self.constants {
            graph = graph.message(5, tensor(constant, data.map(|file| (file, offset))));
            offset += constant.data_bytes().next_multiple_of(DATA_ALIGNMENT);
        }
        for (field, values) in [(11, &self.inputs), (12, &self.outputs)] {
            for value in values {
                graph = graph.bytes(field, value);
            }
        }
        Message::new()
            .int(1, IR_VERSION)
            .text(2, "kronsae")
            .text(3, env!("CARGO_PKG_VERSION"))
            .message(7, graph)
            .message(8, Message::new().text(1, "").int(2, opset))
            .message(14, entry("kronsae.config", config))
    }

    /// Writes the matrices as [`Graph::model`] refers to them.
    pub(super) fn write_data(&self, sink: &mut dyn Write) -> io::Result<()> {
        for constant in &self.constants {
            if let Values::Matrix(matrix) = constant.values {
                write_matrix(matrix, sink)?;
                let bytes = constant.data_bytes();
                let padding = bytes.next_multiple_of(DATA_ALIGNMENT) - bytes;
                sink.write_all(&vec![0; padding as usize])?;
            }
        }
        Ok(())
    }
}

/// `StringStringEntryProto`.
fn entry(key: &str, value: &str) -> Message<'static> {
    Message::new().text(1, key).text(2, value)
}

/// `TensorProto`, a matrix in the file and at the offset that `external` names.
fn tensor<'a>(constant: &Constant<'a>, external: Option<(&str, u64)>) -> Message<'a> {
    let (dims, element) = match &constant.values {
        Values::Matrix(matrix) => (vec![matrix.rows(), matrix.cols()], Element::F32),
        Values::Vector(values) => (vec![values.len()], Element::F32),
        Values::Ints(values, true) => (vec![values.len()], Element::I64),
        Values::Ints(_, false) => (Vec::new(), Element::I64),
    };
    let tensor = dims.iter().fold(Message::new(), |tensor, &dim| tensor.int(1, dim as i64));
    let tensor = tensor.int(2, element as i64).text(8, constant.name);
    match (&constant.values, external) {
        (Values::Matrix(matrix), None) => tensor.matrix(9, matrix),
        (Values::Matrix(_), Some((file, offset))) => tensor
            .message(13, entry("location", file))
            .message(13, entry("offset", &offset.to_string()))
            .message(13, entry("length", &constant.data_bytes().to_string()))
            .int(14, 1),
        (Values::Vector(values), _) => {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensor.bytes(9, &bytes)
        }
        (Values::Ints(values, _), _) => {
            let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect();
            tensor.bytes(9, &bytes)
        }
    }
}
