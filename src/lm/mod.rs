pub fn probe() { let t = tch::Tensor::ones([2,2], tch::kind::FLOAT_CPU); assert!(t.sum(tch::Kind::Float).double_value(&[]) == 4.0); }
