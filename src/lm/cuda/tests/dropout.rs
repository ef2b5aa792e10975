use tch::{Device, Kind, Tensor};

use super::gpu;
use crate::lm::dropout::Dropout;

#[test]
fn dropout_drops_the_elements_that_it_drops_on_a_cpu_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let dropout = Dropout::new(0.05);
    dropout.reseed(0x1234_5678_9abc_def0);
    for shape in [[37, 72], [128, 2560]] {
        let ones = Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let found = dropout.apply(&ones.to_device(device));
        assert_eq!(found.to_device(Device::Cpu), dropout.apply(&ones));
    }
}
