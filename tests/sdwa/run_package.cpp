// Runs a package of AOTInductor on a map of ones, without Python, and prints the sum of its result.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <iostream>

int main(int, char** arguments) {
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  const at::Tensor out = model.run({at::ones({7, 5, 6, 16})}).at(0);
  std::cout << out.sum().item<double>() << "\n";
}
